"""What is learned from in which order: several sources by their shares, epoch by epoch, in batches.

All of it follows from sizes and the seed, so that a loop that goes on needs to know the number of its step only.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from charter.worker.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Mixture:
    """Sources by name: of each item the tokens that count, and how much of what is learned comes from each source.

    ``shares`` sum to 1. Without them every item is taken once in an epoch; with them an epoch has as many tokens, and
    some items are taken more than once in it, or not at all.
    """

    tokens: Mapping[str, Sequence[int]]
    shares: Mapping[str, float]

    @classmethod
    def of(cls, tokens: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> "Mixture":
        """By ``weights`` that need not sum to 1; without any, by the tokens that there are."""
        weighted = weights or {name: sum(counts) for name, counts in tokens.items()}
        total = sum(weighted.values())
        return cls(tokens, {name: weighted[name] / total for name in tokens})

    def passes(self, source: str) -> float:
        """How often an epoch takes each item of a source, on average."""
        everything = sum(sum(counts) for counts in self.tokens.values())
        return self.shares[source] * everything / sum(self.tokens[source])

    def epoch(self, number: int, seed: int) -> list[tuple[str, int]]:
        """Source and place of each item of an epoch, from 0, in order."""
        taken: list[tuple[str, int]] = []
        for source, counts in self.tokens.items():
            # Of an endless stream of passes, each in its own order: an epoch begins where the one before ended.
            first, last = (round(self.passes(source) * len(counts) * end) for end in (number, number + 1))
            orders: dict[int, list[int]] = {}
            for position in range(first, last):
                turn, place = divmod(position, len(counts))
                if turn not in orders:
                    orders[turn] = _shuffled(range(len(counts)), seed, "pass", source, turn)
                taken.append((source, orders[turn][place]))
        return _shuffled(taken, seed, "epoch", number)


def _shuffled[T](items: Sequence[T], seed: int, *use: str | int) -> list[T]:
    order = list(items)
    random.Random(derive_seed(seed, "learning order", *use)).shuffle(order)
    return order


def batches(items: Sequence[tuple[str, int]], sizes: Sequence[int], most: int) -> Iterator[list[tuple[str, int]]]:
    """Neighbours together while their sizes sum to at most ``most``; an item that is larger is alone."""
    batch: list[tuple[str, int]] = []
    size = 0
    for item, own in zip(items, sizes, strict=True):
        if batch and size + own > most:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += own
    if batch:
        yield batch

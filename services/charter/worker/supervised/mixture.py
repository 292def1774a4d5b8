"""What is learned from in which order: several sources, epoch by epoch, in batches.

All of it follows from sizes and the seed, so that a loop that goes on needs to know the number of its step only.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from charter.worker.seeds import derive_seed

T = TypeVar("T")
# Name of a source, and the place of an item in it.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Mixture:
    """By source: of each item the tokens that are learned, and how often an epoch takes each item, on average."""

    tokens: Mapping[str, Sequence[int]]
    passes: Mapping[str, float]

    @classmethod
    def weighted(cls, tokens: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> "Mixture":
        """Shares of the tokens as ``weights`` say, no source more than once; without weights all of each."""
        if not weights:
            return cls(tokens, dict.fromkeys(tokens, 1.0))
        wanted = {name: weights[name] / sum(counts) for name, counts in tokens.items()}
        most = max(wanted.values())
        return cls(tokens, {name: one / most for name, one in wanted.items()})

    def beside(self, replay: "Mixture", share: float) -> "Mixture":
        """This and so much of ``replay`` that it is the ``share`` of an epoch's tokens, as often as that needs."""
        factor = share / (1 - share) * self._epoch_tokens / replay._epoch_tokens
        replayed = {name: passes * factor for name, passes in replay.passes.items()}
        return Mixture({**self.tokens, **replay.tokens}, {**self.passes, **replayed})

    @property
    def shares(self) -> dict[str, float]:
        """Of each source in the tokens that are learned."""
        return {name: self.passes[name] * sum(counts) / self._epoch_tokens for name, counts in self.tokens.items()}

    @property
    def _epoch_tokens(self) -> float:
        return sum(self.passes[name] * sum(counts) for name, counts in self.tokens.items())

    def stream(self, first: int, count: int, seed: int) -> list[Place]:
        """Items ``first`` to ``first + count`` of endless epochs, which follow each other."""
        taken: list[Place] = []
        number = 0
        while self._items_before(number + 1) <= first:
            number += 1
        first -= self._items_before(number)
        while len(taken) < first + count:
            taken += self.epoch(number, seed)
            number += 1
        return taken[first : first + count]

    def _items_before(self, number: int) -> int:
        """Items of the epochs before one."""
        return sum(round(self.passes[source] * len(counts) * number) for source, counts in self.tokens.items())

    def epoch(self, number: int, seed: int) -> list[Place]:
        """The items of an epoch, which counts from 0, in order."""
        taken: list[Place] = []
        for source, counts in self.tokens.items():
            # Of an endless stream of passes, each in its own order: an epoch begins where the one before ended.
            first, last = (round(self.passes[source] * len(counts) * end) for end in (number, number + 1))
            orders: dict[int, list[int]] = {}
            for position in range(first, last):
                turn, place = divmod(position, len(counts))
                if turn not in orders:
                    orders[turn] = _shuffled(range(len(counts)), seed, "pass", source, turn)
                taken.append((source, orders[turn][place]))
        return _shuffled(taken, seed, "epoch", number)


@dataclass(frozen=True, slots=True)
class Batching:
    """Neighbours of an epoch are a batch while their sizes sum to at most ``most``; what is larger is alone."""

    mixture: Mixture
    # By source, as the mixture's tokens.
    sizes: Mapping[str, Sequence[int]]
    most: int
    epochs: int
    seed: int

    def steps(self) -> list[int]:
        """Batches of each epoch."""
        return [sum(1 for _ in self.epoch(number)) for number in range(self.epochs)]

    def epoch(self, number: int) -> Iterator[list[Place]]:
        """The batches of an epoch, in order."""
        batch: list[Place] = []
        filled = 0
        for source, place in self.mixture.epoch(number, self.seed):
            size = self.sizes[source][place]
            if batch and filled + size > self.most:
                yield batch
                batch, filled = [], 0
            batch.append((source, place))
            filled += size
        if batch:
            yield batch

    def batches(self, steps: Sequence[int], first: int) -> Iterator[list[Place]]:
        """Every batch from step ``first`` on, which counts from 0; ``steps`` are those of each epoch."""
        for number in range(self.epochs):
            before = sum(steps[:number])
            if before + steps[number] > first:
                for place, batch in enumerate(self.epoch(number)):
                    if before + place >= first:
                        yield batch


def _shuffled(items: Sequence[T], seed: int, *use: str | int) -> list[T]:
    order = list(items)
    random.Random(derive_seed(seed, "learning order", *use)).shuffle(order)
    return order

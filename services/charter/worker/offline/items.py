"""Comparisons and rated answers as a model learns from them: token ids, and what the starting model says of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from charter.worker.supervised.corpus import Item, SourceItems


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledItem(Item):
    """An item whose loss counts once, however many tokens it has."""

    # AI, HUMAN or IMPORTED.
    label_source: str
    # Log-prob of each sequence's targets by the starting model, in nats; empty until it was asked.
    reference: tuple[float, ...] = ()

    @property
    def units(self) -> int:
        """What the loss is a mean over: the items."""
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedAnswers(LabelledItem):
    """Answers A and B to a prompt, a sequence each."""

    # Soft label P(A is better); no tie.
    probability_a: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedAnswer(LabelledItem):
    """An answer to a prompt; behind it, once it is found, an answer to another prompt as if it were to this one."""

    good: bool

    @property
    def targets(self) -> int:
        """Tokens that are learned: those of the answer to another prompt are only measured."""
        return len(self.sequences[0].targets)


def with_labels(corpus: Mapping[str, SourceItems]) -> dict[str, SourceItems]:
    """Sources with the counts of whose labels they have."""

    def counted(items: Iterable[Item]) -> dict[str, int]:
        return dict(Counter(item.label_source for item in items if isinstance(item, LabelledItem)))

    return {name: replace(one, labels=counted((*one.train, *one.held_out))) for name, one in corpus.items()}

"""Pairs of answers that people compare, and where they come from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from charter.data.bad_rows import BadRows
from charter.data.pairs.read import PairDefaults, comparisons
from charter.data.sources import Source
from charter.hashing import stable_fraction
from charter.storage.comparisons import LABELLED, content_id
from charter.v1 import types_pb2

# Share of the prompts of a file that are held out from fits, where its rows do not say.
_HELD_OUT_FRACTION = 0.2

# What a person chose, by the place on the page.
LEFT, RIGHT, TIE = "left", "right", "tie"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt. What wrote them stays on this side of the page."""

    # Names the pair to the page.
    id: str
    # Everything that a label of it keeps: prompt, both answers, dimension, run, split. An AI's or a file's own label
    # stays in it, to be compared with people's.
    comparison: types_pb2.Comparison

    @property
    def identical(self) -> bool:
        """There is nothing to prefer."""
        return self.comparison.answer_a.text == self.comparison.answer_b.text

    def swapped(self, labeller: str) -> bool:
        """Whether B is shown left to this labeller: as good as random, and the same after a restart."""
        return stable_fraction("order", self.id, labeller) < 0.5

    def shown(self, labeller: str) -> tuple[types_pb2.Answer, types_pb2.Answer]:
        """The left and the right answer on this labeller's page."""
        answers = (self.comparison.answer_a, self.comparison.answer_b)
        return (answers[1], answers[0]) if self.swapped(labeller) else answers


def pair_of(comparison: types_pb2.Comparison) -> Pair:
    """A pair whose id is its content: the same prompt and answers, in either order, are the same pair."""
    return Pair(content_id(comparison), comparison)


def prefers_first(comparison: types_pb2.Comparison) -> str:
    """A label as said of the pair, not of its order: ``first`` (of the sorted texts), ``second`` or ``tie``.

    Empty for a comparison without a label.
    """
    if comparison.outcome not in LABELLED:
        return ""
    if comparison.outcome == types_pb2.OUTCOME_TIE:
        return "tie"
    a_is_first = comparison.answer_a.text <= comparison.answer_b.text
    return "first" if a_is_first == (comparison.outcome == types_pb2.OUTCOME_PREFERRED_A) else "second"


def read_pairs(source: str | Path, bad: BadRows | None = None) -> Iterator[Pair]:
    """Pairs of a source, streaming: in any layout that ``charter preferences import`` reads, with or without a label.

    Raises ``DataError`` behind the last row where bad ones stop, and when a file cannot be read.
    """
    defaults = PairDefaults(Source.parse(source).name, held_out_fraction=_HELD_OUT_FRACTION)
    for _, comparison in comparisons(source, defaults, bad or BadRows(), labelled=False):
        yield pair_of(comparison)


def unique(pairs: Iterable[Pair]) -> list[Pair]:
    """Each pair once, in order; those of identical answers are left out."""
    return list({pair.id: pair for pair in pairs if not pair.identical}.values())

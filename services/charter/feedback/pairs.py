"""Pairs of answers that people compare, and where they come from."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.hashing import stable_fraction
from charter.jsonl import RowError
from charter.rpc.validation import violations
from charter.storage.comparison_files import read_rows
from charter.storage.comparison_layouts import LeftOutError, PairDefaults, read_comparison, split_of
from charter.storage.comparisons import LABELLED
from charter.v1 import types_pb2

logger = logging.getLogger("charter.feedback")

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


def content_id(comparison: types_pb2.Comparison) -> str:
    """Digest of the prompt and of both texts, whichever is A."""
    texts = sorted((comparison.answer_a.text, comparison.answer_b.text))
    content = json.dumps([[(turn.role, turn.content) for turn in comparison.prompt], texts])
    return hashlib.sha256(content.encode()).hexdigest()


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


def read_pairs(file: Path) -> Iterator[Pair]:
    """Pairs of a JSONL or Parquet file, streaming.

    A row is ``prompt`` (text or messages), ``answer_a`` and ``answer_b``, with the optional columns of an export, or
    any layout that ``charter preferences import`` reads. Rows that it would leave out are left out here, with a line in
    the log. Raises ``RowError`` behind the last one, which names all bad
    rows; ``ValueError`` for another ending, ``OSError`` when the file cannot be read.
    """
    problems: list[str] = []
    try:
        for place, row in read_rows(file):
            try:
                comparison = _comparison(row, file.name)
            except LeftOutError as error:
                logger.warning("%s, %s is left out: %s", file, place, error)
                continue
            except ValueError as error:
                problems.append(f"{file}, {place}: {error}")
                continue
            if found := violations(comparison):
                problems.append(f"{file}, {place}: " + "; ".join(f"{one.field} {one.description}" for one in found))
            else:
                yield pair_of(comparison)
    except RowError as error:
        problems += error.problems
    if problems:
        raise RowError(problems)


def unique(pairs: Iterable[Pair]) -> list[Pair]:
    """Each pair once, in order; those of identical answers are left out."""
    return list({pair.id: pair for pair in pairs if not pair.identical}.values())


def _comparison(row: Mapping[str, Any], file: str) -> types_pb2.Comparison:
    if "chosen" in row or "rejected" in row or "outcome" in row:
        return read_comparison(row, PairDefaults(file, "", _HELD_OUT_FRACTION))
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    unlabelled = {"outcome": "UNAVAILABLE", "source": "HUMAN", "split": "TRAIN"}
    comparison = read_comparison({**unlabelled, **row, "prompt": prompt}, PairDefaults(file, "", _HELD_OUT_FRACTION))
    if "split" not in row:
        comparison.split = split_of(list(comparison.prompt), _HELD_OUT_FRACTION)
    return comparison

"""Labelled pairs of answers that a judge is measured on, and the file that is written of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows, said
from charter.data.errors import DataError
from charter.data.pairs.read import pairs
from charter.held_out import prompt_key


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers to one prompt and P(A is better) by whoever labelled them.

    ``group`` names the prompt: pairs of one group are not independent, and are never on both sides of a split.
    ``source`` says where the label comes from.
    """

    prompt: tuple[ChatMessage, ...]
    answer_a: str
    answer_b: str
    label: float
    group: str
    dimension: str = ""
    source: str = ""


def read_labelled_pairs(source: str | Path, bad: BadRows | None = None, *, labelled: bool = True) -> list[LabelledPair]:
    """The pairs of ``source`` (as ``charter.data.sources.Source.parse``), in any layout that an import reads.

    Where ``labelled`` is False, pairs without a label have 0.5. Raises ``DataError`` for bad rows where they stop, for
    a source without pairs, and when a file cannot be read.
    """
    bad = bad or BadRows()
    found = [
        LabelledPair(
            one.prompt,
            one.answer_a,
            one.answer_b,
            0.5 if one.label is None else one.label,
            one.group or prompt_key(one.prompt),
            one.dimension,
            one.source,
        )
        for one in pairs(source, bad, labelled)
    ]
    if not found:
        raise DataError([f"{source}: no labelled pairs" + (f"; left out: {said(bad.counts)}" if bad.counts else "")])
    return found


def write_labelled_pairs(path: Path, labelled_pairs: Iterable[LabelledPair]) -> None:
    """Write the JSONL that ``read_labelled_pairs`` reads."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for pair in labelled_pairs:
            record = {
                "messages": [{"role": turn.role, "content": turn.content} for turn in pair.prompt],
                "answer_a": pair.answer_a,
                "answer_b": pair.answer_b,
                "label": pair.label,
                "group": pair.group,
                "dimension": pair.dimension,
                "source": pair.source,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

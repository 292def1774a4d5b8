"""Labelled pairs of answers: two answers to a prompt, and which is better by whoever labelled them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from charter.chat import ChatMessage, Role
from charter.held_out import prompt_key
from charter.jsonl import RowError, read_records
from charter.rpc.messages import chat_messages
from charter.storage.comparison_files import read_rows
from charter.storage.comparison_layouts import LeftOutError, PairDefaults, read_comparison
from charter.storage.comparisons import enum_name, label_problem

_KEYS = {"prompt", "messages", "answer_a", "answer_b", "label", "group", "dimension", "source"}
# Fields of the layouts that comparisons are imported from, and of no other.
_IMPORTED = {"chosen", "rejected", "outcome"}
_LABELS = {"a": 1.0, "b": 0.0}


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


class LabelledPairs(list[LabelledPair]):
    """The pairs of a file; ``left_out`` counts by kind the rows that are well-formed and of no use."""

    def __init__(self, pairs: Iterable[LabelledPair], left_out: Mapping[str, int]) -> None:
        super().__init__(pairs)
        self.left_out = left_out


def read_labelled_pairs(path: Path, *, default_label: float | None = None) -> LabelledPairs:
    """Read a file of labelled pairs: JSONL, compressed or not, or Parquet.

    A row has ``prompt`` (text) or ``messages``, ``answer_a``, ``answer_b``, ``label`` (P(A is better), a or b).
    ``group`` (default: the prompt's key), ``dimension`` and ``source`` are optional, and with a ``default_label`` the
    label is too. Or it is in any layout that ``charter preferences import`` reads: ``chosen`` and ``rejected``, or an
    exported comparison. Raises ``RowError`` for malformed rows and a file without pairs, ``OSError`` when the file
    cannot be read.
    """
    left_out: Counter[str] = Counter()

    def pair_of(row: dict[str, Any]) -> LabelledPair | None:
        try:
            return _pair_of(row, default_label)
        except LeftOutError as error:
            left_out[error.kind] += 1
            return None

    read = _read_parquet if path.name.lower().endswith(".parquet") else read_records
    found = read(path, pair_of)
    pairs = [pair for pair in found if pair is not None]
    if not pairs:
        raise RowError([f"{path}: no labelled pairs" + (f"; left out: {said(left_out)}" if left_out else "")])
    return LabelledPairs(pairs, left_out)


def said(left_out: Mapping[str, int]) -> str:
    """Counts of left out rows in words: ``2 with an empty answer, 1 without a label``."""
    return ", ".join(f"{count} {kind}" for kind, count in left_out.items())


def _read_parquet(path: Path, pair_of: Callable[[dict[str, Any]], LabelledPair | None]) -> list[LabelledPair | None]:
    found: list[LabelledPair | None] = []
    problems: list[str] = []
    try:
        for place, row in read_rows(path):
            try:
                found.append(pair_of(row))
            except ValueError as error:
                problems.append(f"{path}, {place}: {error}")
    except RowError:
        raise
    except ValueError as error:
        raise RowError([str(error)]) from error
    if problems:
        raise RowError(problems)
    return found


def write_labelled_pairs(path: Path, pairs: Iterable[LabelledPair]) -> None:
    """Write the JSONL that ``read_labelled_pairs`` reads."""
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
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


def _pair_of(record: dict[str, Any], default_label: float | None) -> LabelledPair:
    if not _IMPORTED.isdisjoint(record):
        return _imported(record)
    unknown = sorted(set(record) - _KEYS)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    prompt = _prompt_of(record)
    answers = [text_of(record, name) for name in ("answer_a", "answer_b")]
    label = record.get("label", default_label)
    if isinstance(label, str) and label in _LABELS:
        label = _LABELS[label]
    if isinstance(label, bool) or not isinstance(label, int | float) or not 0.0 <= label <= 1.0:
        raise ValueError(f'label must be "a", "b" or P(A is better) in [0, 1], not {label!r}')
    group = text_of(record, "group") if "group" in record else prompt_key(prompt)
    optional = {name: text_of(record, name) for name in ("dimension", "source") if name in record}
    return LabelledPair(prompt, answers[0], answers[1], float(label), group, **optional)


def _imported(row: dict[str, Any]) -> LabelledPair:
    """A row in a layout of ``charter preferences import``. Raises as ``read_comparison``."""
    comparison = read_comparison(row, PairDefaults("", "", 0.0))
    if problem := label_problem(comparison):
        raise ValueError(problem)
    if not comparison.HasField("probability_a"):
        raise LeftOutError("without a label", "nobody could say which answer is better")
    prompt = chat_messages(comparison.prompt)
    return LabelledPair(
        prompt,
        comparison.answer_a.text,
        comparison.answer_b.text,
        comparison.probability_a,
        prompt_key(prompt),
        comparison.dimension,
        "" if "chosen" in row else enum_name("source", comparison.source).lower(),
    )


def _prompt_of(record: dict[str, Any]) -> tuple[ChatMessage, ...]:
    if ("prompt" in record) == ("messages" in record):
        raise ValueError("needs either prompt or messages")
    if "prompt" in record:
        return (ChatMessage("user", text_of(record, "prompt")),)
    turns = record["messages"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages must be a list with at least one turn")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in get_args(Role) or set(turn) != {"role", "content"}:
            raise ValueError(f"a message needs role ({', '.join(get_args(Role))}) and content, not {turn!r}")
    return tuple(ChatMessage(turn["role"], text_of(turn, "content")) for turn in turns)


def text_of(record: dict[str, Any], name: str) -> str:
    """Text of a field. Raises ``ValueError`` for what is missing or no text."""
    value = record.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {value!r}" if name in record else f"{name} is missing")
    return value

"""Labelled pairs of answers: two answers to a prompt, and which is better by whoever labelled them, as JSONL."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from charter.chat import ChatMessage, Role
from charter.jsonl import RowError, read_records

_KEYS = {"prompt", "messages", "answer_a", "answer_b", "label", "group", "dimension", "source"}
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


def read_labelled_pairs(path: Path, *, default_label: float | None = None) -> list[LabelledPair]:
    """Read JSONL: ``prompt`` (text) or ``messages``, ``answer_a``, ``answer_b``, ``label`` (P(A is better), a or b).

    ``group`` (default: a digest of the prompt), ``dimension`` and ``source`` are optional, and with a
    ``default_label`` the label is too. Raises ``RowError`` for malformed lines and a file without pairs,
    ``OSError`` when the file cannot be read.
    """
    pairs = read_records(path, lambda record: _pair_of(record, default_label))
    if not pairs:
        raise RowError([f"{path}: no labelled pairs"])
    return pairs


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
    group = text_of(record, "group") if "group" in record else _digest(json.dumps([turn.content for turn in prompt]))
    optional = {name: text_of(record, name) for name in ("dimension", "source") if name in record}
    return LabelledPair(prompt, answers[0], answers[1], float(label), group, **optional)


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

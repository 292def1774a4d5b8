"""Two answers to one prompt and which is better: what every layout of comparisons is read as."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from charter.chat import ChatMessage
from charter.data.errors import BadRowError
from charter.hashing import stable_number


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison of a file. ``label`` is P(A is better), None where the row has none.

    ``group`` names the prompt where the row does; ``source`` says where the label comes from; ``split`` is that of an
    export of ours, TRAIN or HELD_OUT.
    """

    prompt: tuple[ChatMessage, ...]
    answer_a: str
    answer_b: str
    label: float | None
    dimension: str = ""
    group: str = ""
    source: str = ""
    split: str = ""


def placed(prompt: Sequence[ChatMessage], better: str, worse: str, label: float, **more: str) -> Pair:
    """A pair of which a layout names the better answer first; ``label`` is P(it is better).

    Which becomes A is drawn by the content: it says nothing about which is better, and is the same when the file is
    read again.
    """
    if better == worse:
        label = 0.5
    content = json.dumps([[(turn.role, turn.content) for turn in prompt], better, worse])
    if stable_number(content) % 2 == 0:
        return Pair(tuple(prompt), better, worse, label, **more)
    return Pair(tuple(prompt), worse, better, 1 - label, **more)


def refuse_empty(answers: Sequence[tuple[str, str]]) -> None:
    """Raises ``BadRowError`` when one of the answers, each with its column, has no word."""
    for name, answer in answers:
        if not answer.strip():
            raise BadRowError("with an empty answer", f"the answer of {name} is empty")


def number_of(value: Any, name: str) -> float:
    """A finite number, or its text in a CSV file. Raises ``BadRowError``."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise BadRowError("not a number", f"{name} must be a number")
    return number

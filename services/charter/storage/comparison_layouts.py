"""The chosen/rejected layouts that others use for comparisons, and their conversion from and to ours."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from charter.hashing import stable_number
from charter.held_out import is_held_out, normalised, prompt_key
from charter.outcomes import outcome_of
from charter.rpc.messages import chat_messages
from charter.storage.comparisons import (
    LABELLED,
    Row,
    comparison_from_row,
    comparison_to_row,
    messages_from,
)
from charter.v1 import types_pb2

# As ``charter.storage.comparisons.COLUMNS``.
PAIR_COLUMNS = {
    "chosen": "messages",
    "rejected": "messages",
    "probability_chosen": "number",
    "source": "text",
    "dimension": "text",
    "split": "text",
}

# Pairs of columns in which data sets of the field give the ratings that chosen and rejected were made from.
_RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
_DIALOGUE_TURN = re.compile(r"\n\n(Human|Assistant):")
_DIALOGUE_ROLES = {"Human": types_pb2.ROLE_USER, "Assistant": types_pb2.ROLE_ASSISTANT}


class LeftOutError(ValueError):
    """A row is well-formed and of no use; ``kind`` says why, in words that rows are counted by."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class PairDefaults:
    """What chosen/rejected rows do not say about themselves."""

    labeller: str
    dimension: str
    # Share of prompts that are put into the held-out split.
    held_out_fraction: float


def read_comparison(row: Mapping[str, Any], defaults: PairDefaults) -> types_pb2.Comparison:
    """A comparison from a row in any layout; the layout is told by the row's fields.

    - ours: the columns of ``charter.storage.comparisons.COLUMNS``;
    - ``chosen`` and ``rejected`` as message lists that share all but their last turn (UltraFeedback);
    - ``chosen`` and ``rejected`` as dialogues in one text, each turn after ``\\n\\nHuman:`` or ``\\n\\nAssistant:``
      (HH-RLHF);
    - either of them behind a ``prompt`` in one of these forms, or plain answers to a ``prompt`` text. What a
      conversation repeats of the prompt is there once.

    The label is ``probability_chosen`` where the row has it, a tie where chosen and rejected are the same or were rated
    the same, and certain otherwise. A ``split`` of ours is kept; further fields of a chosen/rejected row are ignored.

    Raises ``LeftOutError`` for a chosen/rejected row whose answers are not to the same conversation, of which an answer
    is empty, or whose ratings contradict it; ``ValueError`` that names what is wrong with any other.
    """
    if "chosen" not in row and "rejected" not in row:
        if "answer_a" not in row:
            raise ValueError(
                "needs chosen and rejected, or the fields of an exported comparison (answer_a, answer_b, …)"
            )
        return comparison_from_row(row)
    prompt, chosen, rejected = _read_pair(row)
    comparison = types_pb2.Comparison(
        prompt=prompt,
        source=types_pb2.LABEL_SOURCE_IMPORTED,
        labeller=defaults.labeller,
        dimension=defaults.dimension or _dimension(row),
        split=_split(row, prompt, defaults.held_out_fraction),
    )
    # Which answer is A says nothing about which was chosen, and stays the same when the file is read again.
    chosen_is_a = _number(prompt, chosen, rejected) % 2 == 0
    comparison.answer_a.text, comparison.answer_b.text = (chosen, rejected) if chosen_is_a else (rejected, chosen)
    probability = 0.5 if chosen == rejected else _probability_chosen(row)
    comparison.probability_a = probability if chosen_is_a else 1 - probability
    comparison.outcome = outcome_of(comparison.probability_a)
    return comparison


def pair_row(comparison: types_pb2.Comparison) -> Row | None:
    """A row with the columns of ``PAIR_COLUMNS``; None for a tie and for a comparison without a label."""
    if comparison.outcome not in LABELLED or comparison.outcome == types_pb2.OUTCOME_TIE:
        return None
    row = comparison_to_row(comparison)
    a_is_chosen = comparison.outcome == types_pb2.OUTCOME_PREFERRED_A
    chosen, rejected = ("answer_a", "answer_b") if a_is_chosen else ("answer_b", "answer_a")
    return {
        "chosen": [*row["prompt"], {"role": "assistant", "content": row[chosen]}],
        "rejected": [*row["prompt"], {"role": "assistant", "content": row[rejected]}],
        "probability_chosen": row["probability_a"] if a_is_chosen else 1 - row["probability_a"],
        "source": row["source"],
        "dimension": row["dimension"],
        "split": row["split"],
    }


def split_of(prompt: Sequence[types_pb2.Message], held_out_fraction: float) -> types_pb2.Split.ValueType:
    """Drawn by the prompt's content, so that a prompt is never in both splits."""
    held_out = is_held_out(prompt_key(chat_messages(prompt)), held_out_fraction)
    return types_pb2.SPLIT_HELD_OUT if held_out else types_pb2.SPLIT_TRAIN


def _split(
    row: Mapping[str, Any], prompt: list[types_pb2.Message], held_out_fraction: float
) -> types_pb2.Split.ValueType:
    """As the row says, if it came from an export of ours."""
    match row.get("split"):
        case "TRAIN":
            return types_pb2.SPLIT_TRAIN
        case "HELD_OUT":
            return types_pb2.SPLIT_HELD_OUT
    return split_of(prompt, held_out_fraction)


def _dimension(row: Mapping[str, Any]) -> str:
    dimension = row.get("dimension")
    return dimension if isinstance(dimension, str) else ""


def _probability_chosen(row: Mapping[str, Any]) -> float:
    """P(chosen is better) by what the row says besides."""
    stated = row.get("probability_chosen")
    if stated is not None:
        if type(stated) not in (int, float) or not 0 <= stated <= 1:
            raise ValueError(f"probability_chosen must be a number in [0, 1], not {stated!r}")
        return float(stated)
    for names in _RATINGS:
        chosen, rejected = (row.get(name) for name in names)
        if isinstance(chosen, int | float) and isinstance(rejected, int | float):
            if chosen < rejected:
                raise LeftOutError("rated against the choice", f"{names[0]} is below {names[1]}")
            return 0.5 if chosen == rejected else 1.0
    return 1.0


def _read_pair(row: Mapping[str, Any]) -> tuple[list[types_pb2.Message], str, str]:
    """Prompt, chosen and rejected answer."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not (isinstance(chosen, str) and isinstance(rejected, str)) and not (
        isinstance(chosen, list) and isinstance(rejected, list)
    ):
        raise ValueError("chosen and rejected must both be text, or both be lists of messages")
    sides = {name: _conversation(row.get("prompt"), row[name], name) for name in ("chosen", "rejected")}
    for name, side in sides.items():
        if len(side) < 2 or side[-1].role != types_pb2.ROLE_ASSISTANT:
            raise ValueError(f"{name} must have a prompt and end with a turn of the assistant")
    (*prompt, answer), (*other_prompt, other_answer) = sides.values()
    if not _same(prompt, other_prompt):
        raise LeftOutError(
            "different before the last turn", "chosen and rejected must be the same up to their last turn"
        )
    for name, side in sides.items():
        if not side[-1].content.strip():
            raise LeftOutError("with an empty answer", f"the answer of {name} is empty")
    return prompt, answer.content, other_answer.content


def _conversation(prompt: Any, side: str | list[Any], name: str) -> list[types_pb2.Message]:
    """A side with the prompt before it, which it may repeat in whole or in part."""
    opening = _opening(prompt)
    if isinstance(side, list):
        turns = messages_from(side, name)
    elif _is_dialogue(side) or not opening:
        turns = _dialogue(side, name)
    else:
        turns = [types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content=side)]
    size = len(opening)
    if any(_same(turns[start : start + size], opening) for start in range(len(turns) - size)):
        return turns
    for shared in range(min(size, len(turns) - 1), 0, -1):
        if _same(opening[-shared:], turns[:shared]):
            return opening[:-shared] + turns
    if turns and turns[0].role != types_pb2.ROLE_ASSISTANT:
        if isinstance(prompt, str) and not _is_dialogue(prompt):
            # Such as the name of a prompt, or one that a template was laid over: the conversation is whole.
            return turns
        if opening and opening[-1].role == types_pb2.ROLE_USER:
            raise ValueError(f"{name} must begin with the prompt, or with the answer to it")
    return opening + turns


def _opening(prompt: Any) -> list[types_pb2.Message]:
    if isinstance(prompt, list):
        return messages_from(prompt, "prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        return []
    if not _is_dialogue(prompt):
        return [types_pb2.Message(role=types_pb2.ROLE_USER, content=prompt)]
    turns = _dialogue(prompt, "prompt")
    # It may end where the answer begins.
    begun = turns[-1].role == types_pb2.ROLE_ASSISTANT and not turns[-1].content
    return turns[:-1] if begun else turns


def _same(one: Sequence[types_pb2.Message], other: Sequence[types_pb2.Message]) -> bool:
    """Whether turns are the same but for how their texts are written."""
    return len(one) == len(other) and all(
        a.role == b.role and (a.content == b.content or normalised(a.content) == normalised(b.content))
        for a, b in zip(one, other, strict=True)
    )


def _is_dialogue(text: str) -> bool:
    before, *parts = _DIALOGUE_TURN.split(text)
    return bool(parts) and not before.strip()


def _dialogue(text: str, name: str) -> list[types_pb2.Message]:
    """Turns of a dialogue in the HH-RLHF layout; the white space around each is dropped."""
    if not _is_dialogue(text):
        raise ValueError(f"{name} must start with a turn such as '\\n\\nHuman: …', or stand beside a prompt")
    _, *parts = _DIALOGUE_TURN.split(text)
    return [
        types_pb2.Message(role=_DIALOGUE_ROLES[speaker], content=content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _number(prompt: list[types_pb2.Message], *parts: str) -> int:
    """A number in [0, 2^64) that only the content decides."""
    return stable_number(json.dumps([[(turn.role, turn.content) for turn in prompt], *parts]))

"""The chosen/rejected layouts that others use for comparisons, and their conversion from and to ours."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from charter.hashing import stable_number
from charter.outcomes import outcome_of
from charter.storage.comparisons import LABELLED, Row, comparison_from_row, comparison_to_row, messages_from
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

_DIALOGUE_TURN = re.compile(r"\n\n(Human|Assistant):")
_DIALOGUE_ROLES = {"Human": types_pb2.ROLE_USER, "Assistant": types_pb2.ROLE_ASSISTANT}


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
    - ``chosen`` and ``rejected`` as message lists that share all but their last turn (UltraFeedback), or as the last
      turn alone behind a ``prompt`` of messages;
    - ``chosen`` and ``rejected`` as dialogues in one text, each turn after ``\\n\\nHuman:`` or ``\\n\\nAssistant:``
      (HH-RLHF), or as plain answers to a ``prompt`` text.

    Further fields of a chosen/rejected row are ignored. Raises ``ValueError`` that names what is wrong.
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
        dimension=defaults.dimension,
        split=split_of(prompt, defaults.held_out_fraction),
    )
    # Which answer is A says nothing about which was chosen, and stays the same when the file is read again.
    chosen_is_a = _number(prompt, chosen, rejected) % 2 == 0
    comparison.answer_a.text, comparison.answer_b.text = (chosen, rejected) if chosen_is_a else (rejected, chosen)
    comparison.probability_a = 0.5 if chosen == rejected else float(chosen_is_a)
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


def _read_pair(row: Mapping[str, Any]) -> tuple[list[types_pb2.Message], str, str]:
    """Prompt, chosen and rejected answer."""
    chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list):
        opening = messages_from(prompt, "prompt") if isinstance(prompt, list) else []
        turns = [opening + messages_from(chosen, "chosen"), opening + messages_from(rejected, "rejected")]
    elif not isinstance(chosen, str) or not isinstance(rejected, str):
        raise ValueError("chosen and rejected must both be text, or both be lists of messages")
    elif isinstance(prompt, str):
        return [types_pb2.Message(role=types_pb2.ROLE_USER, content=prompt)], chosen, rejected
    else:
        turns = [_dialogue(chosen, "chosen"), _dialogue(rejected, "rejected")]
    for name, side in zip(("chosen", "rejected"), turns, strict=True):
        if len(side) < 2 or side[-1].role != types_pb2.ROLE_ASSISTANT:
            raise ValueError(f"{name} must have a prompt and end with a turn of the assistant")
    if turns[0][:-1] != turns[1][:-1]:
        raise ValueError("chosen and rejected must be the same up to their last turn")
    return turns[0][:-1], turns[0][-1].content, turns[1][-1].content


def _dialogue(text: str, name: str) -> list[types_pb2.Message]:
    """Turns of a dialogue in the HH-RLHF layout; the white space around each is dropped."""
    before, *parts = _DIALOGUE_TURN.split(text)
    if before.strip() or not parts:
        raise ValueError(f"{name} must start with a turn such as '\\n\\nHuman: …', or stand beside a prompt")
    return [
        types_pb2.Message(role=_DIALOGUE_ROLES[speaker], content=content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def split_of(prompt: list[types_pb2.Message], held_out_fraction: float) -> types_pb2.Split.ValueType:
    """Drawn by the prompt, so that a prompt is never in both splits."""
    share = _number(prompt, "split") / 2**64
    return types_pb2.SPLIT_HELD_OUT if share < held_out_fraction else types_pb2.SPLIT_TRAIN


def _number(prompt: list[types_pb2.Message], *parts: str) -> int:
    """A number in [0, 2^64) that only the content decides."""
    return stable_number(json.dumps([[(turn.role, turn.content) for turn in prompt], *parts]))

"""Rows of ``chosen`` and ``rejected``: texts, dialogues in one text (HH-RLHF) or lists of turns (UltraFeedback)."""

from collections.abc import Mapping, Sequence
from typing import Any

from charter.chat import ChatMessage
from charter.data.dialogues import dialogue_turns, is_dialogue, spoken
from charter.data.errors import BadRowError
from charter.data.pairs.grades import probability_of_gap
from charter.data.pairs.pair import Pair, number_of, placed, refuse_empty
from charter.data.requests import CONVERSATIONS, column_of, request_turns, with_system
from charter.data.rows import Fields
from charter.data.turns import text_of, turns_of
from charter.held_out import normalised

_NAMES = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response_chosen", "response_rejected"))
# Columns in which data sets of the field give the ratings that chosen and rejected were made from.
_RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)


def with_chosen_rejected(fields: Fields) -> Fields | None:
    """The row with the better and the worse answer in ``chosen`` and ``rejected``, or None where it has neither."""
    for chosen, rejected in _NAMES:
        if chosen in fields or rejected in fields:
            sides = {"chosen": fields.get(chosen), "rejected": fields.get(rejected)}
            return fields | {name: [side] if isinstance(side, Mapping) else side for name, side in sides.items()}
    return None


def chosen_rejected_pair(fields: Fields, column: str = "") -> Pair:
    """The pair of a row. What a conversation repeats of its ``prompt`` is there once.

    The label is the probability in ``column``, else in ``probability_chosen`` where the row has it, by their ratings
    where both have one (``charter.data.pairs.grades``), a tie for the same answer, else certain. Raises
    ``BadRowError``.
    """
    chosen, rejected = fields.get("chosen"), fields.get("rejected")
    if not any(isinstance(chosen, kind) and isinstance(rejected, kind) for kind in (str, list)):
        raise BadRowError("of no known layout", "chosen and rejected must both be text, or both be lists of turns")
    sides = {name: _conversation(fields, name) for name in ("chosen", "rejected")}
    for name, side in sides.items():
        if len(side) < 2 or side[-1].role != "assistant":
            raise BadRowError("without an answer", f"{name} must have a prompt and end with a turn of the assistant")
    (*prompt, answer), (*other_prompt, other_answer) = sides.values()
    if not _same(prompt, other_prompt):
        raise BadRowError(
            "different before the last turn", "chosen and rejected must be the same up to their last turn"
        )
    refuse_empty([("chosen", answer.content), ("rejected", other_answer.content)])
    more = {name: text_of(fields[name], name) for name in ("dimension", "split") if isinstance(fields.get(name), str)}
    return placed(prompt, answer.content, other_answer.content, _probability(fields, column), **more)


def _probability(fields: Fields, column: str) -> float:
    """P(chosen is better)."""
    if column or "probability_chosen" in fields:
        column = column or "probability_chosen"
        stated = number_of(column_of(fields, column), column)
        if not 0 <= stated <= 1:
            raise BadRowError("not a probability", f"{column} must be a number in [0, 1], not {stated}")
        return stated
    for names in _RATINGS:
        if all(name in fields for name in names):
            gap = number_of(fields[names[0]], names[0]) - number_of(fields[names[1]], names[1])
            if gap < 0:
                raise BadRowError("rated against the choice", f"{names[0]} is below {names[1]}")
            return probability_of_gap(gap)
    return 1.0


def _conversation(fields: Fields, name: str) -> list[ChatMessage]:
    """A side with the prompt before it, which it may repeat in whole or in part."""
    opening = list(_opening(fields))
    side = fields[name]
    if isinstance(side, list):
        turns = list(turns_of(side, name))
    elif is_dialogue(side) or not opening:
        turns = list(dialogue_turns(text_of(side, name), name))
    else:
        turns = [ChatMessage("assistant", text_of(side, name))]
    size = len(opening)
    if any(_same(turns[start : start + size], opening) for start in range(len(turns) - size)):
        return turns
    for shared in range(min(size, len(turns) - 1), 0, -1):
        if _same(opening[-shared:], turns[:shared]):
            return opening[:-shared] + turns
    if turns and turns[0].role != "assistant":
        if _is_plain(fields.get("prompt")):
            # Such as the name of a prompt, or one that a template was laid over: the conversation is whole.
            return turns
        if opening and opening[-1].role == "user":
            raise BadRowError(
                "not an answer to its prompt", f"{name} must begin with the prompt, or with the answer to it"
            )
    return opening + turns


def _opening(fields: Fields) -> tuple[ChatMessage, ...]:
    prompt = fields.get("prompt")
    if isinstance(prompt, str) and not prompt.strip():
        return ()
    if (request := request_turns(fields)) is not None:
        return request
    whole = next((name for name in CONVERSATIONS if name in fields), None)
    turns = with_system(fields, turns_of(fields[whole], whole)) if whole else ()
    # Where it ends with an answer, it is one of the sides.
    return turns if turns and turns[-1].role == "user" else ()


def _is_plain(prompt: Any) -> bool:
    return isinstance(prompt, str) and not is_dialogue(prompt) and len(spoken(prompt, "prompt")) == 1


def _same(one: Sequence[ChatMessage], other: Sequence[ChatMessage]) -> bool:
    """Whether turns are the same but for how their texts are written."""
    return len(one) == len(other) and all(
        a.role == b.role and (a.content == b.content or normalised(a.content) == normalised(b.content))
        for a, b in zip(one, other, strict=True)
    )

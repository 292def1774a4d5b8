"""Rows of two answers in columns of their own, and a label that says which is better, in the forms that sets have."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from charter.chat import ChatMessage
from charter.data import json_text
from charter.data.errors import BadRowError
from charter.data.pairs.grades import probability_of_gap, probability_of_votes
from charter.data.pairs.pair import Pair, number_of, refuse_empty
from charter.data.requests import CONVERSATIONS, REQUESTS, column_of, request_turns
from charter.data.rows import Fields
from charter.data.turns import text_of, turns_of

# answer_a, response_0, response1, generation-2, human_ref_A, text1, conversation_a, …: a stem and a mark of the side.
_ANSWER = re.compile(
    r"(.*(?:answer|response|generation|completion|output|reply|ref|text|conversation))[-_ ]?([0-9a-d])"
)
_NEXT = {"0": "1", "1": "2", "2": "3", "a": "b", "b": "c"}
# What people and tools call the sides and a tie.
_FIRST, _SECOND = ("a", "left", "first", "model_a"), ("b", "right", "second", "model_b")
_TIES = ("tie", "both", "equal", "same", "neither", "tie (bothbad)", "both_bad")
# Columns of labels in words, and of a signed preference whose negative side is the first answer.
_CHOICES = ("label", "preference", "choice", "winner", "comparison", "preferred", "better")
# HelpSteer3 and the preferences of HelpSteer2: -3 .. 3.
_SIGNED = ("overall_preference", "preference_strength")
# PKU-SafeRLHF says apart which answer helps more and which harms less.
_AXES = {"better_response_id": "helpful", "safer_response_id": "harmless"}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of two answers, and the mark of each: ``response_0`` and ``0``."""

    first: str
    second: str
    first_mark: str
    second_mark: str


def answer_columns(fields: Mapping[str, Any]) -> Columns | None:
    """The columns of the two answers that a row holds, or None."""
    found: dict[tuple[str, str], str] = {}
    for name in fields:
        if matched := _ANSWER.fullmatch(name.lower()):
            found[matched[1], matched[2]] = name
    for (stem, mark), name in sorted(found.items()):
        second = _NEXT.get(mark, "")
        if (stem, second) not in found:
            continue
        if (stem, _NEXT.get(second, "")) in found:
            raise BadRowError("of more than two answers", f"has more than two answers ({name}, …): two can be compared")
        return Columns(name, found[stem, second], mark, second)
    return None


def side_by_side_pairs(fields: Fields, columns: Columns, column: str, labelled: bool) -> list[Pair]:
    """The pair of a row, or one for each of its two axes. ``column`` names that of the label; empty finds it.

    A row may have no label where ``labelled`` is False. Raises ``BadRowError``.
    """
    axes = {name: dimension for name, dimension in _AXES.items() if name in fields and name == (column or name)}
    if axes:
        return [
            replace(side_by_side_pair(fields, columns, 1.0 - _index(fields[name], name)), dimension=dimension)
            for name, dimension in axes.items()
        ]
    return [side_by_side_pair(fields, columns, _label(fields, columns, column, labelled))]


def side_by_side_pair(fields: Fields, columns: Columns, label: float | None) -> Pair:
    """The pair of a row, with P(the first answer is better); the same answer twice is a tie. Raises ``BadRowError``."""
    prompt, first, second = _answers(fields, columns)
    if columns.first.lower() != "answer_a":
        # Files of our own may compare with an empty answer.
        refuse_empty([(columns.first, first), (columns.second, second)])
    more = {
        name: text_of(fields[name], name)
        for name in ("dimension", "group", "source", "split")
        if isinstance(fields.get(name), str)
    }
    return Pair(prompt, first, second, 0.5 if label is not None and first == second else label, **more)


def chosen_of(value: Any) -> Any:
    """What Label Studio's Pairwise and Choices hold, also as JSON-MIN and CSV write it; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = json_text.decode(value.encode(errors="surrogatepass"))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("selected") or value.get("choices")
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def side_of(choice: Any, columns: Columns) -> float | None:
    """P(the first is better) by a choice in words: a side's column, mark or place, or a tie; None for another word."""
    if not isinstance(choice, str):
        return None
    words, names = choice.strip().lower(), (columns.first.lower(), columns.second.lower())
    plain = re.sub(r"[-_ ]", "", words)
    for side, name, mark, known in (
        (1.0, names[0], columns.first_mark, _FIRST),
        (0.0, names[1], columns.second_mark, _SECOND),
    ):
        if plain == re.sub(r"[-_ ]", "", name) or words == mark or words in known:
            return side
    return 0.5 if words in _TIES else None


def _label(fields: Fields, columns: Columns, column: str, labelled: bool) -> float | None:
    if column and column not in _SIGNED:
        return _stated(column_of(fields, column), column, columns)
    for name in [column] if column else _SIGNED:
        if name in fields or column:
            return probability_of_gap(-number_of(column_of(fields, name), name))
    if "labels" in fields and {"score_a", "score_b"} <= {name.lower() for name in fields}:
        return _by_votes({name.lower(): value for name, value in fields.items()})
    for name in _CHOICES:
        if name in fields:
            return _stated(fields[name], name, columns)
    # lmsys/chatbot_arena and its kin: one column for each outcome.
    outcomes = {"winner_model_a": 1.0, "winner_model_b": 0.0, "winner_tie": 0.5}
    if stated := [side for name, side in outcomes.items() if fields.get(name) in (1, "1", True)]:
        return stated[0]
    if labelled:
        known = ", ".join((*_CHOICES, *_SIGNED, *_AXES))
        raise BadRowError("without a label", f"has two answers and no label: needs one of {known}")
    return None


def _stated(value: Any, name: str, columns: Columns) -> float:
    """P(the first is better): a side in words, by its number, or a probability."""
    value = chosen_of(value)
    if (side := side_of(value, columns)) is not None:
        return side
    try:
        number = number_of(value, name)
    except BadRowError:
        number = -1.0
    if (
        columns.first_mark.isdigit()
        and number.is_integer()
        and str(int(number)) in (columns.first_mark, columns.second_mark)
    ):
        # Beside response_0 and response_1 a 0 is the first answer, and no probability.
        return 1.0 if str(int(number)) == columns.first_mark else 0.0
    if not 0 <= number <= 1 or (columns.first_mark.isdigit() and number.is_integer()):
        sides = f"{columns.first} or {columns.second}, a or b, left or right, tie"
        raise BadRowError("not a label", f"{name} must be {sides}, or P({columns.first} is better) in [0, 1]")
    return number


def _by_votes(fields: Fields) -> float:
    """SHP: ``labels`` is 1 where A has more votes; the scores say how many each has."""
    votes = [number_of(fields[name], name) for name in ("score_a", "score_b")]
    label = number_of(fields["labels"], "labels")
    if label not in (0, 1) or (label - 0.5) * (votes[0] - votes[1]) < 0:
        raise BadRowError("rated against the choice", "labels must be 1 where score_A is above score_B, else 0")
    return probability_of_votes(*votes)


def _index(value: Any, name: str) -> float:
    index = number_of(value, name)
    if index not in (0, 1):
        raise BadRowError("not a label", f"{name} must be 0 or 1, the number of the answer")
    return index


def _answers(fields: Fields, columns: Columns) -> tuple[tuple[ChatMessage, ...], str, str]:
    """The prompt and both answers."""
    (before, first), (other_before, second) = _side(fields, columns.first), _side(fields, columns.second)
    if before != other_before:
        raise BadRowError("different before the last turn", "both answers must be to the same conversation")
    return before or _prompt(fields), first, second


def _side(fields: Fields, name: str) -> tuple[tuple[ChatMessage, ...], str]:
    """An answer, and what is said before it where its column holds the whole conversation (arena of LMSYS)."""
    value = fields[name]
    if not isinstance(value, list) or not any(
        isinstance(one, Mapping) and {"role", "from"} & one.keys() for one in value
    ):
        return (), text_of(value, name)
    turns = turns_of(value, name)
    if not turns or turns[-1].role != "assistant":
        raise BadRowError("without an answer", f"{name} must end with a turn of the assistant")
    return turns[:-1], turns[-1].content


def _prompt(fields: Fields) -> tuple[ChatMessage, ...]:
    whole = next((name for name in CONVERSATIONS if name in fields), None)
    if whole is not None and not any(name in fields for name in REQUESTS):
        turns = turns_of(fields[whole], whole)
    else:
        found = request_turns(fields)
        if found is None:
            known = ", ".join((*REQUESTS, *CONVERSATIONS))
            raise BadRowError("of no known layout", f"has two answers and no prompt: needs one of {known}")
        turns = found
    if not turns:
        raise BadRowError("with an empty prompt", "has no turn to answer")
    return turns

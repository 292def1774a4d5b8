"""Rows of several rated answers: UltraFeedback's completions, distilabel's generations, HelpSteer's neighbours."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from statistics import fmean
from typing import Any

from charter.data.errors import BadRowError
from charter.data.pairs.grades import probability_of_gap
from charter.data.pairs.pair import Pair, number_of, placed
from charter.data.requests import REQUESTS, request_turns
from charter.data.rows import Fields, Row
from charter.data.turns import text_of
from charter.hashing import stable_number

_ANSWERS = ("completions", "responses", "generations", "answers")
_RATINGS = ("ratings", "scores")
# HelpSteer and HelpSteer2 grade each answer in a row of its own; the card compares them by this.
_GRADE = "helpfulness"


def is_rated(fields: Fields, column: str = "") -> bool:
    """Whether a row holds a list of answers with ratings, which ``column`` may name."""
    name = _answers_column(fields)
    if name is None:
        return False
    rated = any(one in fields for one in (*_RATINGS, column) if one)
    return rated or any(isinstance(one, Mapping) for one in fields[name])


def rated_pair(fields: Fields, column: str = "") -> Pair:
    """The best answer against one that is rated lower, drawn by the content; a tie where none is lower.

    ``column`` names the list of ratings, or what each answer is rated by. Raises ``BadRowError``.
    """
    prompt = request_turns(fields)
    if prompt is None:
        raise BadRowError("of no known layout", f"needs one of {', '.join(REQUESTS)} beside its answers")
    answers = _rated_answers(fields, column)
    if len(answers) < 2:
        raise BadRowError("with one answer alone", "has one rated answer: two are needed to compare")
    answers.sort(key=lambda one: (-one[1], stable_number("answer", one[0])))
    (best, rating), *others = answers
    lower = [one for one in others if one[1] < rating] or others
    answer, its_rating = lower[stable_number("lower", best, *(one[0] for one in lower)) % len(lower)]
    return placed(prompt, best, answer, probability_of_gap(rating - its_rating))


def with_neighbours(rows: Iterator[Row], column: str = "") -> Iterator[Row]:
    """The rows, of which those of one request that each grade one answer (HelpSteer) are made one row of them all.

    ``column`` names that of the grade.
    """
    grade = column or _GRADE
    for key, group in groupby(rows, lambda row: _graded_request(row, grade)):
        if key is None:
            yield from group
            continue
        members = list(group)
        fields = [row.fields() for row in members]
        joined = {name: fields[0][name] for name in REQUESTS if name in fields[0]}
        joined |= {"responses": [one["response"] for one in fields]}
        joined[column or _RATINGS[0]] = [one[grade] for one in fields]
        yield Row(members[0].where, joined)


def _graded_request(row: Row, grade: str) -> str | None:
    if isinstance(row.content, bytes) and _GRADE.encode() not in row.content:
        # Most rows need not be parsed twice.
        return None
    try:
        fields = row.fields()
    except BadRowError:
        return None
    prompt = fields.get("prompt")
    return prompt if {"response", _GRADE, grade} <= fields.keys() and isinstance(prompt, str) else None


def _answers_column(fields: Fields) -> str | None:
    return next((name for name in _ANSWERS if isinstance(fields.get(name), list)), None)


def _rated_answers(fields: Fields, column: str) -> list[tuple[str, float]]:
    name = _answers_column(fields)
    assert name is not None
    ratings = next((fields[one] for one in ([column] if column else _RATINGS) if one in fields), None)
    if ratings is None:
        ratings = [_rating(one, f"{name}[{index}]", column) for index, one in enumerate(fields[name])]
    if not isinstance(ratings, list) or len(ratings) != len(fields[name]):
        raise BadRowError("rated in part", f"{name} and its ratings must be lists of one length")
    found = []
    for index, (answer, rating) in enumerate(zip(fields[name], ratings, strict=True)):
        place = f"{name}[{index}]"
        if isinstance(answer, Mapping):
            answer = next((answer[one] for one in ("response", "answer", "text", "content") if one in answer), None)
        text = text_of(answer, place)
        # An answer that its model did not give, or that was not rated, is no answer to compare.
        if rating is None or not text.strip():
            continue
        found.append((text, number_of(rating, f"the rating of {place}")))
    return found


def _rating(answer: Any, name: str, column: str) -> float | None:
    """What ``column`` names: an aspect of UltraFeedback's, or a number that a completion carries.

    Without one the mean over the aspects, or the one number that there is. Not ``overall_score``, where there are
    aspects: thousands of answers that deserved 1 were given 10 (OpenBMB/UltraFeedback, issue 8).
    """
    if not isinstance(answer, Mapping):
        raise BadRowError("rated in part", f"{name} has no rating")
    aspects = answer.get("annotations")
    if column:
        aspect = aspects.get(column) if isinstance(aspects, Mapping) else None
        stated = aspect.get("Rating") if isinstance(aspect, Mapping) else answer.get(column)
        if stated is None and not isinstance(aspect, Mapping) and column not in answer:
            raise BadRowError(f"without {column}", f"neither the row nor {name} has a rating {column}")
        return None if stated in (None, "N/A") else number_of(stated, f"{name}.{column}")
    if isinstance(aspects, Mapping):
        stated = [one.get("Rating") for one in aspects.values() if isinstance(one, Mapping)]
        numbers = [number_of(one, f"{name}.annotations") for one in stated if one not in (None, "N/A")]
        if numbers:
            return fmean(numbers)
    for column in ("fine-grained_score", "overall_score", "rating", "score"):
        if answer.get(column) is not None:
            return number_of(answer[column], f"{name}.{column}")
    if answer.get("rank") is not None:
        # Nectar: the first is the best.
        return -number_of(answer["rank"], f"{name}.rank")
    return None

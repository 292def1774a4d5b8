"""A column that is named says which answer is better, in every layout of comparisons, or the row is a bad one."""

import math
from pathlib import Path
from typing import Any

import pytest
from charter.data.bad_rows import BadRows
from charter.data.errors import BadRowError, DataError
from charter.data.pairs.read import PairDefaults, comparisons, pairs, pairs_of
from charter.data.thumbs import thumbs

from tests.unit.data.files import write_rows
from tests.unit.data.test_pairs import ARGILLA, better, completion

CHOSEN = {"prompt": "q", "chosen": "yes", "rejected": "no"}
ULTRAFEEDBACK = {"instruction": "q", "completions": [completion("yes", 1, 5), completion("no", 3, 4)]}
LISTS = {"prompt": "q", "responses": ["yes", "no"], "ratings": [1, 2], "second": [4, 1]}
SIGNED = {"prompt": "q", "response1": "yes", "response2": "no", "overall_preference": 2, "preference_strength": -1}
ONE_POINT, THREE_POINTS = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
OURS = {
    "prompt": [{"role": "user", "content": "q"}],
    "answer_a": "yes",
    "answer_b": "no",
    "outcome": "A_BETTER",
    "probability_a": 0.9,
    "source": "AI",
    "method": "CHOICE",
    "split": "TRAIN",
    "label": "b",
}


def test_a_question_or_a_label_can_be_named(tmp_path: Path) -> None:
    rows = [{**ARGILLA, "one.responses": ["response-1"], "two.responses": ["response-2"]}]
    path = write_rows(tmp_path / "p.jsonl", rows)
    for question, label in (("one", 1.0), ("two", 0.0)):
        assert [pair.label for pair in pairs(f"{path}#{question}", BadRows())] == [label]
    rows = [{"prompt": "q", "answer_a": "x", "answer_b": "y", "label": "a", "second_opinion": "b"}]
    (pair,) = pairs(f"{write_rows(tmp_path / 'q.csv', rows)}#second_opinion", BadRows())
    assert pair.label == 0.0


@pytest.mark.parametrize(
    ("row", "column", "probability"),
    [
        ({**CHOSEN, "probability_chosen": 0.6, "sure": 0.8}, "sure", 0.8),
        ({**CHOSEN, "score_chosen": 9, "score_rejected": 1, "sure": "0.7"}, "sure", 0.7),
        (ULTRAFEEDBACK, "honesty", ONE_POINT),
        (LISTS, "second", THREE_POINTS),
        (
            {"prompt": "q", "answers": [{"text": "yes", "a": 1, "rank": 2}, {"text": "no", "a": 0, "rank": 1}]},
            "a",
            ONE_POINT,
        ),
        (SIGNED, "preference_strength", ONE_POINT),
    ],
)
def test_the_column_is_what_counts(row: dict[str, Any], column: str, probability: float) -> None:
    (pair,) = pairs_of(row, column)
    assert better(pair) == ("yes", "no", pytest.approx(probability))


def test_grades_of_neighbours_are_those_of_the_column(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "response": "no", "helpfulness": 4, "coherence": 1},
        {"prompt": "q", "response": "yes", "helpfulness": 1, "coherence": 2},
    ]
    (pair,) = pairs(f"{write_rows(tmp_path / 'h.jsonl', rows)}#coherence", BadRows())
    assert better(pair) == ("yes", "no", pytest.approx(ONE_POINT))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (CHOSEN, "without nowhere"),
        (ULTRAFEEDBACK, "without nowhere"),
        (LISTS, "rated in part"),
        (SIGNED, "without nowhere"),
        (OURS, "with a label of its own"),
    ],
)
def test_a_column_that_is_not_there_is_never_ignored(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        pairs_of(row, "nowhere")
    assert caught.value.reason == reason


def test_an_export_of_ours_takes_no_column_in_any_reader(tmp_path: Path) -> None:
    source = f"{write_rows(tmp_path / 'ours.jsonl', [OURS])}#label"
    for read in (
        lambda: list(pairs(source, BadRows())),
        lambda: list(comparisons(source, PairDefaults("f"), BadRows())),
        lambda: list(thumbs(source)),
    ):
        with pytest.raises(DataError, match="leave out #label"):
            read()

"""Labels of imported comparisons: grades become soft ones, an exchange of the answers exchanges them."""

import json
from pathlib import Path
from typing import Any

import pytest
from charter.data.bad_rows import BadRows
from charter.data.errors import DataError
from charter.data.pairs.grades import SUREST, probability_of_gap, probability_of_votes
from charter.data.pairs.read import PairDefaults, comparisons, pairs_of
from charter.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.files import write_rows
from tests.unit.data.pair_rows import safe_rlhf, shp

NUMBERS = st.floats(-1e4, 1e4)


@given(NUMBERS)
def test_a_grade_is_odd_and_never_certain(gap: float) -> None:
    assert probability_of_gap(gap) + probability_of_gap(-gap) == 1.0
    assert 1 - SUREST <= probability_of_gap(gap) <= SUREST
    assert (probability_of_gap(gap) > 0.5) == (gap > 1e-15) or abs(gap) < 1e-15


@given(st.integers(-3, 10**6), st.integers(-3, 10**6))
def test_votes_are_odd_and_give_their_share(one: int, other: int) -> None:
    assert probability_of_votes(one, other) + probability_of_votes(other, one) == 1.0
    if min(one, other) >= 1:
        assert probability_of_votes(one, other) == pytest.approx(min(max(one / (one + other), 0.01), SUREST))


@given(
    st.sampled_from(["overall_preference", "label", "labels", "better_response_id"]),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_swapped_answers_swap_the_label(kind: str, one: int, other: int) -> None:
    votes = {"labels": int(one > other), "score_A": one, "score_B": other}
    swapped_votes = {"labels": int(other > one), "score_A": other, "score_B": one}
    share = one / (one + other)
    said: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "overall_preference": ({kind: one - other}, {kind: other - one}),
        "label": ({kind: share}, {kind: 1 - share}),
        "labels": (votes, swapped_votes),
        "better_response_id": ({kind: one % 2}, {kind: 1 - one % 2}),
    }
    (pair,) = pairs_of({"prompt": "q", "response_a": "x", "response_b": "y", **said[kind][0]})
    (swapped,) = pairs_of({"prompt": "q", "response_a": "y", "response_b": "x", **said[kind][1]})
    assert pair.label is not None
    assert swapped.label == pytest.approx(1 - pair.label)
    assert (swapped.answer_a, swapped.answer_b) == (pair.answer_b, pair.answer_a)


def test_comparisons_get_what_their_rows_do_not_say(tmp_path: Path) -> None:
    rows = [safe_rlhf(better_response_id=0, safer_response_id=1), shp(dimension="mine"), shp()]
    path = write_rows(tmp_path / "p.jsonl", rows)
    found = [one for _, one in comparisons(path, PairDefaults("people", "general", 1.0), BadRows())]
    assert [one.dimension for one in found] == ["helpful", "harmless", "mine", "general"]
    assert {one.labeller for one in found} == {"people"}
    assert {one.source for one in found} == {types_pb2.LABEL_SOURCE_IMPORTED}
    assert {one.split for one in found} == {types_pb2.SPLIT_HELD_OUT}
    assert [one.outcome for one in found[:2]] == [types_pb2.OUTCOME_PREFERRED_A, types_pb2.OUTCOME_PREFERRED_B]


def test_a_split_is_drawn_by_the_content_of_the_prompt(tmp_path: Path) -> None:
    variants = ("What is  tea?", " What is tea?\n", "What\u00a0is tea?", "What is\u2028tea?\u200b")
    rows = [
        {"prompt": f"{number} {text}", "chosen": "yes", "rejected": "no"} for number in range(300) for text in variants
    ]
    path = write_rows(tmp_path / "p.jsonl", rows)
    splits = [one.split for _, one in comparisons(path, PairDefaults("f", "", 0.3), BadRows())]
    assert all(len(set(splits[start : start + 4])) == 1 for start in range(0, 1200, 4))
    assert abs(splits.count(types_pb2.SPLIT_HELD_OUT) / 1200 - 0.3) < 0.14


def test_what_the_store_refuses_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "x" * 400_001, "rejected": "y"}) + "\n")
    with pytest.raises(DataError, match=r"line 1: answer_[ab]\.text holds at most 400000 characters"):
        list(comparisons(path, PairDefaults("f"), BadRows()))

"""Answers that somebody found good or bad, as data sets and our own exports hold them."""

from pathlib import Path
from typing import Any

import pytest
from charter.data.bad_rows import BadRows
from charter.data.errors import DataError
from charter.data.thumbs import thumbs
from charter.storage.comparison_files import write_comparisons
from charter.v1 import types_pb2

from tests.support.comparisons import comparison
from tests.unit.data.files import write_rows

ASKED = [{"role": "user", "content": "Is tea hot?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize(
    "row",
    [
        # trl-lib/kto-mix-14k, and the same with texts.
        {"prompt": ASKED, "completion": ANSWERED[1:], "label": True},
        {"prompt": "Is tea hot?", "completion": "Yes.", "label": 1},
        {"messages": ANSWERED, "kto_tag": True, "label": None},
        {"question": "Is tea hot?", "answer": "Yes.", "thumb": "UP"},
        {"prompt": "Is tea hot?", "response": "Yes.", "rating": "good"},
        {"prompt": "Is tea hot?", "response": "Yes.", "feedback": "thumbs_up"},
    ],
)
def test_layouts_of_thumbs(tmp_path: Path, row: dict[str, Any]) -> None:
    name = next(name for name in ("label", "kto_tag", "thumb", "rating", "feedback") if row.get(name) is not None)
    opposite = {True: False, "UP": "down", "good": "bad", "thumbs_up": "👎"}[row[name]]
    up, down = thumbs(write_rows(tmp_path / "t.jsonl", [row, row | {name: opposite}]))
    assert [(turn.role, turn.content) for turn in up.prompt] == [("user", "Is tea hot?")]
    assert (up.answer, up.good, down.good, str(down.where)) == ("Yes.", True, False, f"{tmp_path}/t.jsonl, line 2")


def test_ratings_of_our_export_are_thumbs(tmp_path: Path) -> None:
    rated = comparison("Yes", dimension="helpful")
    rated.answer_a.rating, rated.answer_b.rating = types_pb2.RATING_UP, types_pb2.RATING_DOWN
    write_comparisons(tmp_path / "t.parquet", [rated, comparison("Else")])
    bad = BadRows("skip")
    found = list(thumbs(tmp_path / "t.parquet", bad))
    assert [(one.answer, one.good, one.dimension) for one in found] == [
        ("Yes", True, "helpful"),
        ("No", False, "helpful"),
    ]
    assert bad.counts == {"without a rating": 1}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "completion": "x"}, "needs one of label, kto_tag"),
        ({"prompt": "q", "completion": "x", "rating": "3 stars"}, "rating must be true or false, 1 or 0, up or down"),
        ({"prompt": "q", "completion": "x", "rating": 1.0}, "rating may be on a scale: write FILE#rating"),
        ({"messages": [*ANSWERED, *ASKED], "label": True}, "the last turn must be the answer, not the user's"),
        ({"label": True}, "needs messages or"),
    ],
)
def test_what_is_no_thumb_is_a_bad_row(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"line 1: {problem}"):
        list(thumbs(write_rows(tmp_path / "t.jsonl", [row])))


def test_the_column_of_the_verdict_can_be_named(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "x", "label": True, "second_opinion": "bad"}]
    (one,) = thumbs(f"{write_rows(tmp_path / 't.csv', rows)}#second_opinion")
    assert not one.good

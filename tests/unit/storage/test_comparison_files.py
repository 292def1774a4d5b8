"""Files of comparisons: our layout without loss, and the chosen/rejected layout for others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from charter.data.bad_rows import BadRows
from charter.data.pairs.read import PairDefaults, comparisons
from charter.storage.comparison_files import write_comparisons, write_rows
from charter.storage.comparison_layouts import PAIR_COLUMNS, pair_row
from charter.storage.comparisons import COLUMNS, comparison_from_row, comparison_to_row, content_digest
from charter.storage.parquet import schema_of
from charter.v1 import types_pb2

from tests.support.comparisons import comparison, full_comparison


def chosen_and_rejected(one: types_pb2.Comparison) -> tuple[str, str]:
    answers = one.answer_a.text, one.answer_b.text
    return answers if one.outcome == types_pb2.OUTCOME_PREFERRED_A else (answers[1], answers[0])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_our_layout_is_lossless(tmp_path: Path, ending: str) -> None:
    unlabelled = comparison(probability=None, outcome=types_pb2.OUTCOME_UNAVAILABLE)
    sent = [comparison(), full_comparison(), unlabelled]
    path = tmp_path / f"comparisons.{ending}"
    assert write_comparisons(path, iter(sent)) == 3
    found = list(comparisons(path, PairDefaults("f"), BadRows()))
    assert [one for _, one in found] == sent
    unit = "line" if ending == "jsonl" else "row"
    assert [where.place for where, _ in found] == [f"{unit} 1", f"{unit} 2", f"{unit} 3"]
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_has_the_declared_columns(tmp_path: Path) -> None:
    write_comparisons(tmp_path / "c.parquet", [full_comparison()])
    table = pq.read_table(tmp_path / "c.parquet")
    assert table.schema.equals(schema_of(COLUMNS))
    assert table["outcome"].to_pylist() == ["PREFERRED_B"]
    assert table["probability_a"].to_pylist() == [0.1 + 0.2]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    write_comparisons(path, [comparison()])
    before = path.read_bytes()

    def breaking() -> Iterator[types_pb2.Comparison]:
        yield comparison("new")
        raise RuntimeError("connection lost")

    with pytest.raises(RuntimeError, match="connection lost"):
        write_comparisons(path, breaking())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.parquet"):
        write_comparisons(tmp_path / "c.csv", [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"outcom": "TIE"}, "outcom is not a known field"),
        ({"outcome": "BEST"}, "outcome must be one of PREFERRED_A, PREFERRED_B, TIE, INVALID, UNAVAILABLE, not 'BEST'"),
        ({"outcome": "UNSPECIFIED"}, "outcome must be one of"),
        ({"source": None}, "source must be text"),
        ({"probability_a": "0.5"}, "probability_a must be a number"),
        ({"probability_a": True}, "probability_a must be a number"),
        ({"answer_a": None}, "answer_a must be text"),
        ({"answer_a_weight_version": -1}, "answer_a_weight_version must be an integer"),
        ({"answer_a_weight_version": 1.5}, "answer_a_weight_version must be an integer"),
        ({"labeller": 7}, "labeller must be text"),
        ({"prompt": "hi"}, "prompt must be a list"),
        ({"prompt": [{"role": "robot", "content": ""}]}, r"prompt\[0\].role must be one of system, user, assistant"),
        ({"prompt": [{"role": "user"}]}, r"prompt\[0\] must have the keys role and content"),
        ({"judgements": [{"principle_id": 1}]}, r"judgements\[0\].principle_id must be text"),
        ({"judgements": [{"evidence": [None]}]}, r"judgements\[0\].evidence must be a number"),
        ({"judgements": [{"verdict": 1}]}, r"judgements\[0\].verdict is not a known field"),
        ({"create_time": "yesterday"}, "create_time must be a time"),
        ({"create_time": "2026-01-01T00:00:00"}, "create_time must name its time zone"),
        ({"answer_a": "\ud800"}, "surrogates"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], problem: str) -> None:
    row = comparison_to_row(comparison()) | change
    with pytest.raises(ValueError, match=problem):
        comparison_from_row(row)


def test_digest_covers_the_content_and_not_id_or_time() -> None:
    def digest(comparison: types_pb2.Comparison) -> str:
        return content_digest(comparison_to_row(comparison))

    one, other = full_comparison(), full_comparison()
    other.id = "x"
    other.create_time.seconds += 1
    assert digest(one) == digest(other)
    for name in ("labeller", "run_id", "rationale", "method", "dimension"):
        changed = full_comparison()
        setattr(changed, name, getattr(changed, name) + "x")
        assert digest(changed) != digest(one), name
    changed = full_comparison()
    changed.answer_a.cut_off = False
    assert digest(changed) != digest(one)
    changed = full_comparison()
    changed.judgements[0].probability_a = 0.26
    assert digest(changed) != digest(one)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_exported_pairs_read_back(tmp_path: Path, ending: str) -> None:
    sent = [comparison("Yes", 0.8), comparison("Fish", 0.1, outcome=types_pb2.OUTCOME_PREFERRED_B)]
    rows = [row for row in map(pair_row, sent) if row is not None]
    assert rows[1]["chosen"][-1] == {"role": "assistant", "content": "No"}
    assert [row["probability_chosen"] for row in rows] == [0.8, 0.9]
    path = tmp_path / f"pairs.{ending}"
    assert write_rows(path, rows, PAIR_COLUMNS) == 2
    back = [one for _, one in comparisons(path, PairDefaults("f"), BadRows())]
    assert [chosen_and_rejected(one) for one in back] == [("Yes", "No"), ("No", "Fish")]
    assert [turn.content for turn in back[0].prompt] == ["Is water wet?"]


def test_ties_and_unlabelled_have_no_pair() -> None:
    assert pair_row(comparison("x", 0.5, outcome=types_pb2.OUTCOME_TIE)) is None
    assert pair_row(comparison("x", None, outcome=types_pb2.OUTCOME_INVALID)) is None


def test_jsonl_is_one_object_a_line_in_plain_utf8(tmp_path: Path) -> None:
    write_comparisons(tmp_path / "c.jsonl", [full_comparison()])
    (line,) = (tmp_path / "c.jsonl").read_text(encoding="utf-8").splitlines()[:1]
    assert json.loads(line)["labeller"] == "Zoë \x00"
    assert "Zoë" in line

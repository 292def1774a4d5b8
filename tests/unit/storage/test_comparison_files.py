"""Files of comparisons: our layout without loss, and the chosen/rejected layouts of others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from charter.jsonl import RowError
from charter.storage.comparison_files import read_rows, write_comparisons, write_rows
from charter.storage.comparison_layouts import PAIR_COLUMNS, PairDefaults, pair_row, read_comparison
from charter.storage.comparisons import COLUMNS, comparison_from_row, comparison_to_row, content_digest, label_problem
from charter.storage.parquet import schema_of
from charter.v1 import types_pb2

from tests.support.comparisons import comparison, full_comparison

DEFAULTS = PairDefaults(labeller="file.jsonl", dimension="helpful", held_out_fraction=0.0)
PROMPT = [{"role": "user", "content": "Is water wet?"}]


def chosen_and_rejected(one: types_pb2.Comparison) -> tuple[str, str]:
    answers = one.answer_a.text, one.answer_b.text
    return answers if one.outcome == types_pb2.OUTCOME_PREFERRED_A else (answers[1], answers[0])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_our_layout_is_lossless(tmp_path: Path, ending: str) -> None:
    unlabelled = comparison(probability=None, outcome=types_pb2.OUTCOME_UNAVAILABLE)
    sent = [comparison(), full_comparison(), unlabelled]
    path = tmp_path / f"comparisons.{ending}"
    assert write_comparisons(path, iter(sent)) == 3
    rows = list(read_rows(path))
    assert [comparison_from_row(row) for _, row in rows] == sent
    unit = "line" if ending == "jsonl" else "row"
    assert [place for place, _ in rows] == [f"{unit} 1", f"{unit} 2", f"{unit} 3"]
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
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.parquet"):
        read_rows(tmp_path / "c.csv")


@pytest.mark.parametrize("line", ["{", "[1]", '{"a": NaN}', '{"a": Infinity}', "\\xff", "[" * 100_000])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"good": 1}\n\n' + line.encode().replace(b"\\xff", b"\xff") + b"\n")
    with pytest.raises(RowError, match=r"c\.jsonl, line 3: "):
        list(read_rows(path))


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"c\.parquet is not a readable Parquet file"):
        list(read_rows(path))


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


def test_hh_rlhf_dialogue() -> None:
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tell me\nmore\n\nAssistant: Gladly:\n\n1. one",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tell me\nmore\n\nAssistant: No.",
    }
    one = read_comparison(row, DEFAULTS)
    assert [(turn.role, turn.content) for turn in one.prompt] == [
        (types_pb2.ROLE_USER, "Hi"),
        (types_pb2.ROLE_ASSISTANT, "Hello."),
        (types_pb2.ROLE_USER, "Tell me\nmore"),
    ]
    assert chosen_and_rejected(one) == ("Gladly:\n\n1. one", "No.")
    assert (one.source, one.labeller, one.dimension) == (types_pb2.LABEL_SOURCE_IMPORTED, "file.jsonl", "helpful")
    assert label_problem(one) is None


def test_ultrafeedback_messages() -> None:
    row = {
        "prompt": "Is water wet?",
        "prompt_id": "abc",
        "chosen": [*PROMPT, {"role": "assistant", "content": "Yes."}],
        "rejected": [*PROMPT, {"role": "assistant", "content": "Fish."}],
        "score_chosen": 8.0,
    }
    one = read_comparison(row, DEFAULTS)
    assert [turn.content for turn in one.prompt] == ["Is water wet?"]
    assert chosen_and_rejected(one) == ("Yes.", "Fish.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is water wet?", "chosen": "Yes.", "rejected": "Fish."},
        {
            "prompt": PROMPT,
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "Fish."}],
        },
    ],
)
def test_answers_beside_a_prompt(row: dict[str, Any]) -> None:
    one = read_comparison(row, DEFAULTS)
    assert [turn.content for turn in one.prompt] == ["Is water wet?"]
    assert chosen_and_rejected(one) == ("Yes.", "Fish.")


def test_place_of_the_chosen_answer_is_random_but_fixed() -> None:
    rows = [{"prompt": f"Question {number}", "chosen": "Yes.", "rejected": "No."} for number in range(400)]
    imported = [read_comparison(row, DEFAULTS) for row in rows]
    assert imported == [read_comparison(row, DEFAULTS) for row in rows]
    assert all(chosen_and_rejected(one) == ("Yes.", "No.") for one in imported)
    share = sum(one.outcome == types_pb2.OUTCOME_PREFERRED_A for one in imported) / 400
    # Five standard deviations of a fair coin.
    assert abs(share - 0.5) < 0.125


def test_identical_answers_are_a_tie() -> None:
    one = read_comparison({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"}, DEFAULTS)
    assert (one.outcome, one.probability_a) == (types_pb2.OUTCOME_TIE, 0.5)


def test_a_prompt_is_in_one_split_only() -> None:
    defaults = PairDefaults("f", "", held_out_fraction=0.3)
    splits = [
        {
            read_comparison({"prompt": f"Q{number}", "chosen": chosen, "rejected": "No."}, defaults).split
            for chosen in ("Yes.", "Maybe.", "Surely.")
        }
        for number in range(400)
    ]
    assert all(len(found) == 1 for found in splits)
    held_out = sum(found == {types_pb2.SPLIT_HELD_OUT} for found in splits) / 400
    assert abs(held_out - 0.3) < 0.12


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, "needs chosen and rejected, or the fields of an export"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "must both be text, or both be lists"),
        ({"chosen": "plain", "rejected": "text"}, "chosen must start with a turn such as"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: b"},
            "must be the same up to their last turn",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: b"},
            "chosen must have a prompt and end with a turn of the assistant",
        ),
        ({"chosen": [], "rejected": PROMPT}, "chosen must have a prompt"),
        ({"chosen": "x", "rejected": [], "prompt": "p"}, "must both be text"),
        ({"chosen": [{"role": "x", "content": ""}], "rejected": []}, r"chosen\[0\].role must be one of"),
    ],
)
def test_a_wrong_pair_says_what_is_wrong(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_comparison(row, DEFAULTS)


def test_exported_pairs_read_back(tmp_path: Path) -> None:
    sent = [comparison("Yes", 0.8), comparison("Fish", 0.1, outcome=types_pb2.OUTCOME_PREFERRED_B)]
    rows = [row for row in map(pair_row, sent) if row is not None]
    assert rows[1]["chosen"][-1] == {"role": "assistant", "content": "No"}
    assert [row["probability_chosen"] for row in rows] == [0.8, 0.9]
    for ending in ("jsonl", "parquet"):
        path = tmp_path / f"pairs.{ending}"
        assert write_rows(path, rows, PAIR_COLUMNS) == 2
        back = [read_comparison(row, DEFAULTS) for _, row in read_rows(path)]
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

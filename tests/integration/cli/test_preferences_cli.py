"""``charter preferences`` against a running service."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.data.rows import rows_of
from charter.preference.server import PreferenceConfig, build
from charter.storage.comparison_files import write_comparisons
from typer.testing import CliRunner, Result

from tests.support.comparisons import comparison, full_comparison
from tests.support.harness import running
from tests.support.hub import running_hub

UNREACHABLE = "127.0.0.1:1"


@pytest.fixture
def address(tiny_model: Path, tmp_path: Path) -> Iterator[str]:
    config = PreferenceConfig(
        {"default": str(tiny_model)}, f"sqlite:///{tmp_path}/state/charter.db", tmp_path / "staging"
    )
    with running(build(config)) as addresses:
        yield addresses.main


def call(address: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["preferences", *(str(one) for one in arguments), "--address", address])


def result(address: str, *arguments: str | Path) -> Any:
    """What the command prints with --json; it must succeed."""
    done = call(address, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_service_is_found_as_by_every_command(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARTER_PREFERENCE_ADDRESS", address)
    done = CliRunner().invoke(app, ["preferences", "stats", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["total"] == 0


def write_pairs(path: Path, count: int) -> Path:
    lines = [
        {
            "chosen": f"\n\nHuman: Question {number}?\n\nAssistant: Of course.",
            "rejected": f"\n\nHuman: Question {number}?\n\nAssistant: No.",
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_import_export_round_trip(address: str, tmp_path: Path, ending: str) -> None:
    first = tmp_path / f"first.{ending}"
    write_comparisons(first, [full_comparison(), comparison()])
    assert result(address, "import", first) == {"files": [str(first)], "added": 2, "duplicates": 0}
    assert result(address, "import", first)["duplicates"] == 2

    second = tmp_path / f"second.{ending}"
    assert result(address, "export", second) == {"file": str(second), "layout": "charter", "written": 2, "left_out": 0}
    rows = [row.fields() for row in rows_of(second, "second")]
    original = [row.fields() for row in rows_of(first, "first")]
    for row, sent in zip(rows, original, strict=True):
        assert len(row.pop("id")) == 64
        sent.pop("id")
        sent.setdefault("create_time", row["create_time"])
    assert rows == original
    # Exported ids are those that the content gives again elsewhere.
    assert result(address, "import", second) == {"files": [str(second)], "added": 0, "duplicates": 2}


def test_hh_rlhf_import_and_stats(address: str, tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "helpful.jsonl", 1500)
    assert result(address, "import", file, "--dimension", "helpful")["added"] == 1500
    stats = result(address, "stats")
    assert stats["total"] == 1500
    assert stats["by_source"] == {"IMPORTED": 1500}
    assert stats["by_dimension"] == {"helpful": 1500}
    assert stats["by_split"]["HELD_OUT"] == pytest.approx(300, abs=80)
    assert result(address, "stats", "--split", "held-out")["total"] == stats["by_split"]["HELD_OUT"]
    text = call(address, "stats")
    assert text.exit_code == 0
    assert "1500 comparisons" in text.stdout
    assert "IMPORTED" in text.stdout


def test_export_filters_and_pairs(address: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    write_comparisons(source, [comparison(), full_comparison(), comparison("t", 0.5, outcome=3)])
    result(address, "import", source)
    pairs = tmp_path / "pairs.jsonl"
    answer = result(address, "export", pairs, "--layout", "chosen-rejected")
    assert (answer["written"], answer["left_out"]) == (2, 1)
    assert (
        "1 ties and comparisons without a label were left out"
        in call(address, "export", pairs, "--layout", "chosen-rejected").stdout
    )
    human = tmp_path / "human.parquet"
    assert result(address, "export", human, "--source", "human", "--principle", "kind")["written"] == 1
    unknown = call(address, "export", human, "--run", "no such run")
    assert unknown.exit_code == 1
    assert "holds no comparison of a run with the id `no such run`" in unknown.stderr.replace("\n", " ")


def test_malformed_lines_are_named_and_nothing_is_imported(address: str, tmp_path: Path) -> None:
    good = write_pairs(tmp_path / "good.jsonl", 3)
    bad = write_pairs(tmp_path / "bad.jsonl", 3)
    with bad.open("a") as file:
        file.write('{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b"}\n')
        file.write('{"answer_a": "x", "answer_b": "y", "source": "AI", "outcome": "INVALID", "split": "TRAIN"}\n')
        file.write("not json\n")
    done = call(address, "import", good, bad)
    assert done.exit_code == 1
    for words in ("nothing was imported", "bad.jsonl, line 4: chosen and rejected", "bad.jsonl, line 5: prompt needs"):
        assert words in done.stderr
    assert "bad.jsonl, line 6: not valid JSON" in done.stderr
    assert result(address, "stats")["total"] == 0


def write_real(path: Path, rows: int, different: Sequence[int], empty: Sequence[int]) -> Path:
    """As HH-RLHF comes: compressed, some conversations that part before the last turn, some answers without a word."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number in range(1, rows + 1):
            other = "\n\nAssistant: Hm?\n\nHuman: So?" if number in different else ""
            said = "" if number in empty else "Of course."
            row = {
                "chosen": f"\n\nHuman: Question {number}?\n\nAssistant: {said}",
                "rejected": f"\n\nHuman: Question {number}?{other}\n\nAssistant: No.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def test_rows_of_no_use_stop_the_import_with_line_and_reason(address: str, tmp_path: Path) -> None:
    file = write_real(tmp_path / "harmless.jsonl.gz", 60, different=(7, 31), empty=(9,))
    done = call(address, "import", file)
    assert done.exit_code == 1
    told = " ".join(done.stderr.split())
    assert "nothing was imported" in told
    assert f"{file}, line 7: chosen and rejected must be the same up to their last turn" in told
    assert f"{file}, line 9: the answer of chosen is empty" in told
    assert "line 31" in told
    assert "Question" not in told
    assert result(address, "stats")["total"] == 0


def test_skipped_rows_are_counted_by_reason_and_written_down(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_real(tmp_path / "harmless [1].jsonl.gz", 60, different=(7, 31), empty=(9,))
    done = call(address, "import", file, "--dimension", "harmless", "--on-bad-row", "skip")
    assert done.exit_code == 0, done.stderr
    assert "57 comparisons added" in done.stdout
    told = " ".join(done.stderr.split())
    counts = "2 different before the last turn, 1 with an empty answer"
    assert f"left out of {file}: {counts}; they are in harmless [1].jsonl.gz.left-out.jsonl" in told
    assert "Question" not in done.stdout + told
    lines = [json.loads(line) for line in (tmp_path / "harmless [1].jsonl.gz.left-out.jsonl").read_text().splitlines()]
    assert [(line["place"], line["reason"]) for line in lines] == [
        ("line 7", "different before the last turn"),
        ("line 9", "with an empty answer"),
        ("line 31", "different before the last turn"),
    ]
    assert "Question 9?" in lines[1]["row"]
    assert result(address, "import", file, "--dimension", "harmless", "--on-bad-row", "skip") == {
        "files": [str(file)],
        "added": 0,
        "duplicates": 57,
        "left_out": {"different before the last turn": 2, "with an empty answer": 1},
    }


def test_the_same_answer_twice_is_counted_as_a_tie(address: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"Twice {n}?", "chosen": "Yes.", "rejected": "Yes." if n < 2 else "No."} for n in range(5)]
    rows.append({"prompt": "Side by side?", "answer_a": "Yes.", "answer_b": "Yes.", "label": "a"})
    file = tmp_path / "same.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    done = call(address, "import", file)
    assert done.exit_code == 0, done.stderr
    assert "same.jsonl: 2 have the same answer twice: they are ties" in " ".join(done.stderr.split())
    file.write_text(json.dumps(rows[5]) + "\n")
    assert result(address, "import", file)["identical_answers"] == 1


def test_a_set_of_the_hub_is_imported_under_its_commit(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_pairs(tmp_path / "pairs.jsonl", 3).read_bytes()
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        commit = hub.put(
            "org/set", {"harmless/train.jsonl": rows, "harmless/test.jsonl": rows, "other/train.jsonl": rows}
        )
        source = f"hub:org/set@{commit}:harmless:test"
        assert result(address, "import", "hub:org/set:harmless:test")["files"] == [source]
        done = call(address, "import", "hub:org/set")
        assert (done.exit_code, "hub:org/set has several configurations: name one of" in done.stderr) == (1, True)
    result(address, "export", tmp_path / "out.jsonl")
    exported = [row.fields() for row in rows_of(tmp_path / "out.jsonl", "out")]
    assert {row["labeller"] for row in exported} == {f"hub:org/set@{commit}:harmless:test"}
    done = call(address, "import", "hub:org/other")
    assert (done.exit_code, "the hub cannot be reached for hub:org/other" in done.stderr) == (1, True)


def test_a_contradicting_label_is_named(address: str, tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    write_comparisons(file, [comparison(), comparison("x", 0.3)])
    done = call(address, "import", file)
    assert done.exit_code == 1
    assert "c.jsonl, line 2: probability_a 0.3 contradicts the outcome PREFERRED_A" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "missing.jsonl"], "missing.jsonl: there is no such file"),
        (["import", "."], "the name must end in one of .jsonl"),
        (["import", "empty.jsonl"], "empty.jsonl holds no comparisons"),
        (["import", "data.xlsx"], "the name must end in one of .jsonl"),
        (["export", "data.csv"], "must end in .jsonl or .parquet"),
        (["export", "no/such/folder/c.jsonl"], "no/such/folder"),
    ],
)
def test_wrong_files_fail_clearly(address: str, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    done = call(address, arguments[0], tmp_path / arguments[1])
    assert done.exit_code == 1
    assert words in done.stderr.replace("\n", "")


def test_names_with_brackets_are_shown(address: str, tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "a [red]b.jsonl", 1)
    assert call(address, "import", file, "--dimension", "[bold]x").exit_code == 0
    assert "[bold]x" in call(address, "stats").stdout
    file.write_text("{}\n")
    assert "a [red]b.jsonl, line 1" in call(address, "import", file).stderr


def test_unreachable_service_is_named(tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "good.jsonl", 1)
    for arguments in (["stats"], ["export", tmp_path / "out.jsonl"], ["import", file]):
        done = call(UNREACHABLE, *arguments)
        assert done.exit_code == 1
        assert f"the preference service at {UNREACHABLE} cannot be reached" in done.stderr
        assert "charter up" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()

"""`charter audit` of a run that only learned from what is written: told from its folder, while no service is up."""

import json
from pathlib import Path

import pytest
from charter.cli.main import app
from charter.cli.output import console
from charter.runs.results import Learned, LearnedSource, LeftOut, write_result
from charter.storage.comparison_files import write_comparisons
from typer.testing import CliRunner, Result

from tests.support.comparisons import comparison


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KTO on a file, of which some rows were left out; nothing listens where services would be."""
    monkeypatch.setattr(console, "_width", 200)
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path))
    for service in ("PREFERENCE", "TRAINER"):
        monkeypatch.setenv(f"CHARTER_{service}_ADDRESS", "127.0.0.1:1")
    folder = tmp_path / "runs" / "kept-1"
    folder.mkdir(parents=True)
    spec = {"name": "kept", "policy": {"model": "org/base"}, "kto": {"data": [{"source": "/data/thumbs.jsonl"}]}}
    (folder / "spec.json").write_text(json.dumps(spec))
    left_out = LeftOut(9, {"too long": 2})
    source = LearnedSource(6, 1, 40, 1.0, left_out, labels={"HUMAN": 7}, verdicts={"up": 4, "down": 3})
    write_result(folder, "kto", Learned("org/base", {"thumbs.jsonl": source}, 1, 1, 1, "", ()))
    return folder


def audit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments])


def test_it_says_what_was_learned_from_and_whose_labels_that_has() -> None:
    done = audit("kept-1")
    assert done.exit_code == 0, done.output
    assert "kept made no labels: it learned from what is written." in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if "thumbs.jsonl" in line)
    assert " ".join(row) == "kto thumbs.jsonl 6 1 2 too long 7 of people; 4 thumbs up, 3 down"
    found = json.loads(audit("kept-1", "--json").stdout)
    assert (found["sources"][0]["train"], found["labels"]) == (6, [])


def test_labels_that_it_took_from_the_store_are_listed_and_summed_up(run: Path) -> None:
    labels = [comparison(f"Answer {i}", 0.8, dimension="helpful" if i else "harmless") for i in range(3)]
    write_comparisons(run / "kto_stored.parquet", labels)
    assert "0.800" in audit(str(run)).stdout
    found = json.loads(audit("kept-1", "--json", "--limit", "2").stdout)
    assert len(found["labels"]) == 2
    assert len(json.loads(audit("kept-1", "--json", "--dimension", "harmless").stdout)["labels"]) == 1
    assert json.loads(audit("kept-1", "--json", "--summary").stdout)["comparisons"] == 3
    assert "3 comparisons: 3 preferred_a" in audit("kept-1", "--summary").stdout
    said = audit("kept-1", "--comparison", "nope")
    assert said.exit_code == 1
    assert "has no comparison nope" in said.stderr


def test_before_a_stage_is_done_it_says_so(run: Path) -> None:
    (run / "kto.json").unlink()
    assert "No stage of it is done yet." in audit("kept-1").stdout

"""The report's section on a stage that learned from conversations: figures, samples, what is missing."""

import re
from pathlib import Path

import pytest
from charter.cli.main import app
from charter.evaluation.report.report import write_report
from charter.jsonl import append_line
from charter.runs.folder import read_run_folder
from charter.runs.results import HeldOutLoss, Learned, LearnedSource, LeftOut, write_result
from charter.spec.load import spec_from_json, spec_to_json
from charter.v1 import run_pb2
from google.protobuf import json_format
from typer.testing import CliRunner

from tests.support.report_fixture import write_run_folder

LOSSES = {0: 2.5, 4: 1.75, 8: 2.25}
RESULT = Learned(
    model="org/base",
    sources={
        "kind.jsonl": LearnedSource(90, 5, 4000, 0.8, LeftOut(100, {"too_long": 5})),
        "brief.jsonl": LearnedSource(20, 1, 1000, 0.2, LeftOut(21)),
    },
    steps=12,
    done=8,
    kept_step=4,
    sample_beginning="<|im_start|>user\nHow are you?",
    measured=tuple(
        HeldOutLoss(step, loss, {"kind.jsonl": loss, "brief.jsonl": loss + 1}, f"<b>answer {step}</b>")
        for step, loss in LOSSES.items()
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_run_folder(tmp_path / "run")
    spec = spec_from_json((folder / "spec.json").read_text())
    spec.supervised.data.add(source="kind.jsonl")
    (folder / "spec.json").write_text(spec_to_json(spec))
    last = read_run_folder(folder).events[-1].sequence
    for step in range(1, 9):
        event = run_pb2.RunEvent(
            sequence=last + step, phase=run_pb2.PHASE_SUPERVISED, step=step, metrics={"train_loss": 2.0}
        )
        append_line(folder / "events.jsonl", json_format.MessageToJson(event, indent=None))
    return folder


def section(folder: Path) -> str:
    html = write_report(folder).read_text(encoding="utf-8")
    found = re.search(r'<section id="supervised">(.*?)</section>', html, re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def test_losses_samples_and_sources_are_shown(folder: Path) -> None:
    write_result(folder, "supervised", RESULT)
    shown = section(folder)
    assert "The weights after step 4 were kept" in shown
    assert '<strong data-figure="supervised-loss">1.750</strong> <small>nats per token, 2.500 before' in shown
    (row,) = re.findall(r'<th scope="row">brief.jsonl</th>(.*?)</tr>', shown)
    assert re.findall(r"<td[^>]*>([^<]*)<", row) == ["20", "1", "0", "1000", "20.0%", "3.500", "2.750"]
    # What a model wrote is text.
    assert "&lt;b&gt;answer 8&lt;/b&gt;" in shown
    assert "<svg" in shown


def test_a_loss_has_the_unit_of_its_stage(folder: Path) -> None:
    spec = spec_from_json((folder / "spec.json").read_text())
    spec.kto.data.add(source="thumbs.jsonl")
    (folder / "spec.json").write_text(spec_to_json(spec))
    write_result(folder, "kto", RESULT)
    html = write_report(folder).read_text(encoding="utf-8")
    assert "per answer, the held-out loss; 2.500 before" in html
    assert "nats per token, the held-out loss" not in html
    said = CliRunner().invoke(app, ["report", str(folder)]).stdout
    assert "Learning from thumbs (KTO): held-out loss from 2.500 to 1.750 per answer." in " ".join(said.split())


def test_without_anything_held_out_it_says_so(folder: Path) -> None:
    empty = Learned("org/base", RESULT.sources, 12, 12, 12, "", ())
    write_result(folder, "supervised", empty)
    assert "Nothing was held out" in section(folder)


def test_a_stage_that_is_not_done_is_missing_and_one_that_nobody_asked_for_is_not(folder: Path) -> None:
    assert section(folder) == ""
    assert "supervised.json" in read_run_folder(folder).missing
    assert "pretraining.json" not in read_run_folder(folder).missing

"""`charter samples`: from a run's scores to the answers, and from an answer to the labels that pushed its score."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.cli.output import console
from charter.runs.samples import read_samples
from charter.v1 import run_pb2
from typer.testing import CliRunner, Result

from tests.support.worker_services import Stage, tiny_services


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    """A run named "looked-into" that went through every stage, with TensorBoard's files."""
    with tiny_services(tmp_path_factory.mktemp("samples"), tiny_model) as stage:
        spec = stage.spec(ppo={"steps": 2, "episodes_per_step": 10, "sample_share": 0.2})
        spec.sinks.append(run_pb2.SINK_TENSORBOARD)
        assert stage.work("looked-into", spec) == 0
        yield stage


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables do not break words, whatever terminal the tests run in."""
    monkeypatch.setattr(console, "_width", 220)


def samples(stage: Stage, *arguments: str) -> Result:
    run = str(stage.run_folder("looked-into"))
    return CliRunner().invoke(app, ["samples", run, "--address", stage.addresses.preference, *arguments])


def found(stage: Stage, *arguments: str) -> Any:
    done = samples(stage, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_run_kept_the_ends_of_each_step_and_a_share_drawn_by_lot(stage: Stage) -> None:
    kept = read_samples(stage.run_folder("looked-into"))
    means = stage.ppo_steps("looked-into")
    for step in (1, 2):
        of_step = [one for one in kept if one.step == step]
        # A fifth of ten prompts.
        assert (sum(one.extreme for one in of_step), sum(one.random for one in of_step)) == (8, 2)
        scores = sorted(one.score for one in of_step if one.extreme and one.score is not None)
        assert scores[0] <= means[step]["score_mean"] <= scores[-1]
    for one in kept:
        end = "<|im_end|>" if one.ended else ""
        assert "".join(one.pieces) == one.answer + end
        assert {len(one.log_ratios), len(one.advantages), len(one.values)} == {one.tokens}
    ratios = {step: max(abs(value) for one in kept if one.step == step for value in one.log_ratios) for step in (1, 2)}
    assert ratios[1] < 1e-4 < ratios[2]
    # The answers of step 2 were sampled while the policy learned from those of step 1.
    assert {(one.step, one.weight_version, one.preference_version) for one in kept} == {(1, 1, 1), (2, 1, 1)}
    assert list((stage.run_folder("looked-into") / "tensorboard").glob("events.out.tfevents.*"))


def test_answers_are_listed_from_the_lowest_score_or_the_highest(stage: Stage) -> None:
    kept = read_samples(stage.run_folder("looked-into"))
    everything = sorted(one.score for one in kept if one.score is not None)
    assert [one["score"] for one in found(stage, "--limit", "3")] == everything[:3]
    assert [one["score"] for one in found(stage, "--limit", "3", "--highest")] == everything[:-4:-1]
    assert {one["id"].partition(".")[0] for one in found(stage, "--step", "2")} == {"2"}
    lowest = found(stage, "--limit", "1")[0]
    table = samples(stage).stdout
    assert lowest["id"] in table
    assert f"{lowest['score']:+.3f}" in table


def test_an_answer_leads_to_labels_and_these_to_their_principles(stage: Stage) -> None:
    lowest = found(stage, "--limit", "1")[0]
    one = found(stage, "--sample", lowest["id"], "--limit", "3")
    assert {name: one[name] for name in lowest} == lowest
    assert one["pushed_down"]
    assert [entry["push"] for entry in one["pushed_down"]] == sorted(entry["push"] for entry in one["pushed_down"])
    assert all(entry["push"] < 0 for entry in one["pushed_down"])
    assert all(entry["push"] > 0 for entry in one["pushed_up"])
    label = one["pushed_down"][0]
    assert set(label["principles"]) <= {"kind", "safe"}
    shown = samples(stage, "--sample", lowest["id"]).stdout
    assert "Labels that pushed its score down" in shown
    assert label["comparison"][:12] in shown
    audited = CliRunner().invoke(
        app,
        [
            "audit",
            "looked-into",
            "--comparison",
            label["comparison"],
            "--address",
            stage.addresses.preference,
            "--json",
        ],
    )
    assert audited.exit_code == 0, audited.output
    assert [entry["principle_id"] for entry in json.loads(audited.stdout)["judgements"]] == label["principles"]


def test_everything_is_written_to_one_page(stage: Stage, tmp_path: Path) -> None:
    folder = stage.run_folder("looked-into")
    page = samples(stage, "--html")
    assert page.exit_code == 0, page.output
    assert page.stdout.strip() == str(folder / "samples.html")
    whole = (folder / "samples.html").read_text()
    written = found(stage, str(tmp_path / "two.html"), "--html", "--step", "2")
    assert written["page"] == str(tmp_path / "two.html")
    kept = read_samples(folder)
    assert written["answers"] == sum(one.step == 2 for one in kept)
    assert f"{len(kept)} answers of 2 steps" in whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "9"), "has no answers of step 9; its steps are 1 to 2"),
        (("--sample", "1.99"), "keeps no answer 1.99"),
        (("page.html",), "page.html is given without --html"),
    ],
)
def test_what_is_not_there_is_said(stage: Stage, arguments: tuple[str, ...], message: str) -> None:
    done = samples(stage, *arguments)
    assert done.exit_code == 1
    assert message in done.stderr.replace("\n", "")


def test_a_run_without_steps_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    done = CliRunner().invoke(app, ["samples", str(tmp_path)])
    assert done.exit_code == 1
    assert "there was no step of RL yet, or the run has none" in done.stderr

"""`charter compare` through real services and workers: to its end, killed on the way, stopped, refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.rpc.channel import QUICK, connect
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc
from typer.testing import CliRunner, Result

from tests.support.study_home import by_dimension, study_home, write_prompts
from tests.support.worker_services import write_jsonl

ROOT = Path(__file__).resolve().parents[3]
ARMS, SEEDS, PROMPTS = ("rlhf", "rlaif"), (1, 2), 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """All four services, found through the environment, and the study's files; gives their state folder."""
    home = tmp_path_factory.mktemp("home")
    with study_home(home, tiny_model):
        _write_files(home, tiny_model)
        yield home


def _write_files(home: Path, model: Path) -> None:
    write_prompts(home, train=8, held=4, eval=PROMPTS)
    sides = {"chosen": "Yes, of course.", "rejected": "No!"}
    rows = [{"prompt": f"pair {i}?", **sides, "dimension": by_dimension(i)} for i in range(10)]
    write_jsonl(home / "human.jsonl", rows)
    (home / "run.yaml").write_text(
        f"name: base\npolicy: {{model: {model}}}\n"
        "judge: {model: fake-judge, engine: fake, constitution: c.yaml, method: choice}\n"
        "prompts: {train: [train.jsonl], held_out: [held.jsonl]}\nsampling: {max_new_tokens: 4}\n"
        "preference_model: {learning_rate: 1e-3}\nppo: {steps: 2, episodes_per_step: 4, learning_rate: 1e-3}\n"
        "evaluation: {prompts: 2, bootstrap_samples: 100}\n"
    )


def spec_of(home: Path, name: str, arms: str, more: str = "") -> Path:
    judge = os.environ["CHARTER_JUDGE_ADDRESS"]
    file = home / f"{name}.yaml"
    file.write_text(
        f"name: {name}\nrun: run.yaml\nseeds: {list(SEEDS)}\npairs: {{sources: [human.jsonl]}}\n"
        f"judges: [{{name: judge, address: '{judge}', method: choice}}]\narms:\n{arms}"
        f"evaluation:\n  prompts: [{{source: eval.jsonl}}]\n  bootstrap_samples: 100\n"
        f"  judges: [{{name: third, address: '{judge}', method: choice}}]\n{more}"
    )
    return file


def charter(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def runs_of(study: str) -> list[run_pb2.Run]:
    """Those that the trainer has, oldest first."""
    with connect(os.environ["CHARTER_TRAINER_ADDRESS"]) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        found = stub.ListRuns(trainer_pb2.ListRunsRequest(page_size=1000), timeout=QUICK).runs
    return [run for run in reversed(found) if run.spec.name.startswith(f"{study}-")]


def killed_when(spec: Path, said: str) -> None:
    """The command as a process of its own, killed with SIGKILL once it says something."""
    command = [sys.executable, "-u", "-m", "charter.cli.main", "compare", str(spec), "--yes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        assert any(said in line for line in process.stdout), said
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL


# Five models are served in turn, each by a process of its own: minutes where others use the machine.
@pytest.mark.timeout(1800)
def test_a_study_that_is_killed_on_the_way_comes_to_its_figure(home: Path) -> None:
    spec = spec_of(home, "two", "  - {name: rlhf, labels: imported}\n  - {name: rlaif, labels: judge}\n")
    folder = home / "studies" / "two"
    # While a run is under way, whose worker goes on.
    killed_when(spec, "rlhf, seed 1 begins")
    status = json.loads(charter("status", "two", "--json").stdout)
    assert (len(status["runs"]), status["labelled"]) == (1, True)
    labels = (folder / "labels.jsonl").read_text()

    result = charter(spec)
    assert result.exit_code == 0, result.output
    # Nothing was done twice: one run of each arm and seed, each label once.
    runs = runs_of("two")
    assert [run.spec.name for run in runs] == [f"two-{arm}-{seed}" for seed in SEEDS for arm in ARMS]
    assert {run.state for run in runs} == {run_pb2.RUN_STATE_SUCCEEDED}
    assert [run.spec.seed for run in runs] == [1, 1, 2, 2]
    learned = {run.spec.name: [one.run_id for one in run.spec.comparisons.stored] for run in runs}
    assert learned["two-rlhf-1"] == ["study-two-imported"]
    assert learned["two-rlaif-2"] == ["study-two-judge"]
    assert (folder / "labels.jsonl").read_text() == labels
    # All policies have answered, and were compared with what they all began with.
    models = ["start", *(f"{arm}-{seed}" for arm in ARMS for seed in SEEDS)]
    answers = lines(folder / "evaluation" / "answers.jsonl")
    assert [one["model"] for one in answers] == [model for model in models for _ in range(PROMPTS)]
    judged = {(one["model_a"], one["model_b"]) for one in lines(folder / "evaluation" / "judgements.jsonl")}
    assert judged == {(model, "start") for model in models[1:]}
    for file in ("report.html", "figure.svg", "figure.png", "result.json", "evaluation/report.html"):
        assert (folder / file).stat().st_size > 0, file

    # The same command does nothing again, and the figures need nobody.
    assert charter(spec).exit_code == 0
    assert len(runs_of("two")) == 4
    assert lines(folder / "evaluation" / "answers.jsonl") == answers
    (folder / "report.html").unlink()
    assert charter("two", "--figures").exit_code == 0
    assert (folder / "report.html").exists()
    text = charter("status", "two").stdout
    assert "runs: 4 of 4 done" in text
    assert "next: nothing" in text


def test_a_run_that_fails_is_said_and_the_others_go_on(home: Path) -> None:
    arms = (
        "  - {name: broken, labels: imported, run: {services: {max_wait_seconds: 1}, reward: {service: 'localhost:1', "
        "service_weight: 1}}}\n"
        "  - {name: after, after: broken, labels: imported}\n"
        "  - {name: dpo, labels: judge, run: {dpo: {}, ppo: null}}\n"
    )
    spec = spec_of(home, "failing", arms)
    spec.write_text(spec.read_text().replace(str(list(SEEDS)), "[1]"))
    result = charter(spec, "--yes")
    assert result.exit_code == 1, result.output
    assert "✘ broken, seed 1 failed" in result.stdout
    assert (
        "Failed: broken, seed 1 (`charter compare status failing` says why). Not begun: after, seed 1." in result.stdout
    )
    models = {one["model"] for one in lines(home / "studies" / "failing" / "evaluation" / "answers.jsonl")}
    assert models == {"start", "dpo-1"}
    # Another arm is no change; one that has begun is.
    spec.write_text(spec.read_text().replace("dpo: {}", "dpo: {beta: 0.2}"))
    refused = charter(spec, "--yes")
    assert refused.exit_code == 1
    assert "arm dpo, of which runs have begun, is told something else" in refused.stderr


def test_what_is_not_there_is_said_before_anything_begins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(home, "early", "  - {name: rlhf, labels: imported}\n")
    refused = charter(spec)
    assert refused.exit_code == 1
    assert "nobody can be asked whether that is fine: say so by --yes" in refused.stderr
    monkeypatch.setenv("CHARTER_POLICY_ADDRESS", "127.0.0.1:9")
    away = charter(spec, "--yes")
    assert away.exit_code == 1
    assert "the policy service at 127.0.0.1:9 cannot be reached" in away.stderr
    assert f"`charter up {home / 'run.yaml'}` starts the services" in away.stderr
    assert not (home / "studies" / "early" / "spec.json").exists()
    checked = charter(spec, "--check")
    assert checked.exit_code == 0, checked.output
    assert "third is the judge that trained" not in checked.stdout


def test_no_run_begins_that_would_not_end_in_time(home: Path) -> None:
    arms = "  - {name: dpo, labels: imported, run: {dpo: {}, ppo: null}}\n"
    spec = spec_of(home, "late", arms, "hours: 0.000001\n")
    result = charter(spec, "--yes")
    assert result.exit_code == 1
    assert "dpo, seed 1 does not begin: 0 s of the 1e-06 h are left" in result.stdout
    assert "Not begun: dpo, seed 1 and dpo, seed 2." in result.stdout
    assert runs_of("late") == []

"""`charter report` by path, by id, by name through a real trainer service, and with wrong input."""

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter import spec as spec_room
from charter.cli.main import app
from charter.rpc.channel import BATCH, QUICK, connect
from charter.rpc.lifecycle import Addresses
from charter.trainer.local_launcher import LocalLauncher
from charter.trainer.server import TrainerConfig, build
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc
from typer.testing import CliRunner, Result

from tests.support.harness import running
from tests.support.report_fixture import made_up_spec, without, write_run_folder

# Prompts that a spec can name: a trainer looks into them.
STARTER = Path(spec_room.__file__).parent / "starter"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    # Nothing listens there: a port that was just free is bound by nobody, and only this test knows it.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("CHARTER_TRAINER_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Addresses]:
    """A trainer whose workers end at once."""
    config = TrainerConfig(
        database=f"sqlite:///{tmp_path / 'runs.db'}",
        artifacts=tmp_path / "artifacts",
        control_address="127.0.0.1:1",
        launcher=LocalLauncher((sys.executable, "-c", "")),
        services=run_pb2.ServiceAddresses(),
    )
    with running(build(config)) as addresses:
        monkeypatch.setenv("CHARTER_TRAINER_ADDRESS", addresses.main)
        yield addresses


def charter(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments])


def created(addresses: Addresses) -> run_pb2.Run:
    with connect(addresses.main) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        spec = made_up_spec()
        spec.prompts.train[:] = [str(STARTER / "train.jsonl")]
        spec.prompts.held_out[:] = [str(STARTER / "held_out.jsonl")]
        spec.judge.constitution = spec.judge.labelled_pairs = ""
        spec.evaluation.ClearField("prompts")
        request = trainer_pb2.CreateRunRequest(request_id="one", spec=spec)
        return stub.CreateRun(request, timeout=QUICK).run


def test_by_path(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "a run")
    found = charter("a run")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert "The judge preferred the aligned policy on" in lines[0]
    assert Path(lines[-1]) == folder / "report.html"
    assert "made-up-run" in (folder / "report.html").read_text()


def test_json_has_the_figures_of_the_run(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    found = charter(str(folder), "--json", "--output", str(tmp_path / "elsewhere.html"))
    assert found.exit_code == 0, found.output
    printed = json.loads(found.stdout)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    judge = json.loads((folder / "judge_check.json").read_text())["calibration"]
    assert printed["win_rate"] == evaluation["win_rate"]
    assert printed["win_rate_interval"] == [evaluation["win_rate_low"], evaluation["win_rate_high"]]
    assert printed["judge_accuracy"] == judge["accuracy"]
    assert printed["missing"] == []
    assert Path(printed["report"]) == tmp_path / "elsewhere.html"
    assert (tmp_path / "elsewhere.html").exists()
    assert not (folder / "report.html").exists()


def test_json_of_a_partial_run_has_no_made_up_figure(tmp_path: Path) -> None:
    folder = without(write_run_folder(tmp_path / "run"), "evaluation.json", "judge_check.json")
    printed = json.loads(charter(str(folder), "--json").stdout)
    assert printed["win_rate"] is None
    assert printed["judge_accuracy"] is None
    assert printed["missing"] == ["judge_check.json", "evaluation.json"]


def test_by_id_without_any_service(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "home" / "runs" / "demo-1")
    assert charter("demo-1").exit_code == 0
    assert (folder / "report.html").exists()


def test_by_name_through_the_trainer(trainer: Addresses) -> None:
    folder = write_run_folder(Path(created(trainer).artifacts))
    found = charter("made-up-run", "--json")
    assert found.exit_code == 0, found.output
    assert Path(json.loads(found.stdout)["report"]) == folder / "report.html"


def test_a_run_whose_folder_is_not_here(trainer: Addresses) -> None:
    run = created(trainer)
    with connect(trainer.main) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        # Ends when the run has ended: nobody writes into the folder any more.
        list(stub.WatchRun(trainer_pb2.WatchRunRequest(run_id=run.id), timeout=BATCH))
    shutil.rmtree(run.artifacts)
    found = charter(run.id)
    assert found.exit_code == 1
    assert "on another machine" in found.stderr


def test_an_unknown_run(trainer: Addresses) -> None:
    found = charter("nobody")
    assert found.exit_code == 1
    assert "there is no run `nobody`" in found.stderr
    assert "charter runs list" in found.stderr


def test_an_unreachable_trainer() -> None:
    found = charter("somebody")
    assert found.exit_code == 1
    assert "trainer service at 127.0.0.1:" in found.stderr
    assert "path of a run's folder" in found.stderr


def test_another_folder(tmp_path: Path) -> None:
    found = charter(str(tmp_path))
    assert found.exit_code == 1
    assert "neither spec.json nor run.json" in found.stderr


def test_a_malformed_result_changes_nothing(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    (folder / "evaluation.json").write_text('{"win_rate": [/red]}')
    found = charter(str(folder))
    assert found.exit_code == 1
    assert "evaluation.json" in found.stderr
    assert not (folder / "report.html").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    found = charter(str(folder), "--output", str(tmp_path / "nowhere" / "report.html"))
    assert found.exit_code == 1
    assert "nowhere" in found.stderr

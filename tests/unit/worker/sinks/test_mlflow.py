"""MLflow, the real library on its SQLite store: what a run reports is read back by its own client."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.sinks.base import Ending
from charter.worker.sinks.opening import open_sinks

from tests.support.reports import report_a_run

MLFLOW = run_pb2.SINK_MLFLOW


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of MLflow in the environment."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs: MLflow takes seconds to make one."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


def found(uri: str, experiment: str = "charter") -> tuple[Any, list[Any]]:
    """A client, and the runs of an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return client, list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_mlflow_keeps_what_was_reported_and_a_resumed_run_goes_on(
    tmp_path: Path, empty: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(empty, tmp_path)
    report_a_run(tmp_path, MLFLOW, Ending.STOPPED)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client, (run,) = found(uri)
    assert (run.info.run_name, run.info.status) == ("r-1", "KILLED")
    assert run.data.params["policy.model"] == "org/model"
    assert run.data.params["sinks"] == "['SINK_MLFLOW', 'SINK_MLFLOW']"
    rewards = client.get_metric_history(run.info.run_id, "ppo/reward_mean")
    assert [(one.step, one.value) for one in rewards] == [(1, 0.25), (2, 0.5)]
    losses = client.get_metric_history(run.info.run_id, "fitting_preference_model/train_loss")
    # Numbers without a step stand at their event, and events count on.
    assert [(one.step, one.value) for one in losses] == [(1, 0.7), (2, 0.5)]
    assert losses[0].timestamp <= losses[1].timestamp <= rewards[0].timestamp
    assert set(run.data.metrics) == {
        "fitting_preference_model/train_loss", "ppo/reward_mean", "ppo/score_mean.helpful",
    }  # fmt: skip

    report_a_run(tmp_path, MLFLOW)
    client, (run,) = found(uri)
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "fitting_preference_model/train_loss")
    assert [one.step for one in losses] == [1, 2, 7, 8]
    assert not caplog.messages

    # What a store does not take is said, and the run goes on.
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("ALTER TABLE metrics RENAME TO gone")
    report_a_run(tmp_path, MLFLOW, Ending.FAILED)
    said = [one for one in caplog.messages if one.startswith("MLflow")]
    assert ["did not take the numbers of an event" in said[0], *said[1:]] == [
        True, "MLflow lacks the numbers of 4 events",
    ]  # fmt: skip
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FAILED",)]


def test_names_that_mlflow_refuses_are_changed(tmp_path: Path, empty: Path) -> None:
    shutil.copy(empty, tmp_path)
    (sink,) = open_sinks("r-2", run_pb2.RunSpec(sinks=[MLFLOW]), tmp_path)
    sink.write(run_pb2.RunEvent(phase=run_pb2.PHASE_PPO, step=3, metrics={"score_mean.no <harm>!": 1.0}))
    sink.close(Ending.FINISHED)
    _, (run,) = found(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.data.metrics == {"ppo/score_mean.no _harm__": 1.0}


def test_its_variables_say_where(tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(empty, tmp_path / "all.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'all.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "kindness")
    report_a_run(tmp_path / "run", MLFLOW)
    assert [one.info.run_name for one in found(f"sqlite:///{tmp_path / 'all.db'}", "kindness")[1]] == ["r-1"]
    assert not (tmp_path / "run" / "mlflow.db").exists()


def test_a_server_that_is_not_there_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"asks for mlflow, .* Set MLFLOW_TRACKING_URI .* or leave it unset"):
        open_sinks("r-1", run_pb2.RunSpec(sinks=[MLFLOW]), tmp_path)

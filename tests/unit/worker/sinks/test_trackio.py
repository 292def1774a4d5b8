"""Trackio, the real library: what a run reports is read back from its own store."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.sinks.opening import open_sinks

from tests.support.reports import report_a_run

TRACKIO = run_pb2.SINK_TRACKIO


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library begins anew: it keeps what it once read of the environment."""
    for name in [name for name in os.environ if name.startswith("TRACKIO_")]:
        monkeypatch.delenv(name)
    _forget()
    yield
    os.environ.pop("TRACKIO_DIR", None)
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]


def rows(project: str = "charter") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Configuration and numbers of the only run of a project."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs(project)
    assert run.name == "r-1"
    logs = SQLiteStorage.get_logs(project, run.name, run_id=run.id)
    return run.config, [{name: value for name, value in row.items() if name != "timestamp"} for row in logs]


def test_trackio_keeps_what_was_reported_and_a_resumed_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_a_run(tmp_path, TRACKIO)
    config, first = rows()
    assert config["policy"] == {"model": "org/model"}
    assert first == [
        {"fitting_preference_model/train_loss": 0.7, "step": 1},
        {"fitting_preference_model/train_loss": 0.5, "step": 2},
        {"ppo/reward_mean": 0.25, "ppo/score_mean.helpful": -1.5, "step": 1},
        {"ppo/reward_mean": 0.5, "ppo/score_mean.helpful": -1.5, "step": 2},
    ]
    assert any((tmp_path / "trackio").iterdir())
    report_a_run(tmp_path, TRACKIO)
    _, both = rows()
    assert both[:4] == first
    # Numbers without a step stand at their event, and events count on.
    assert [row["step"] for row in both[4:]] == [7, 8, 1, 2]
    assert capsys.readouterr().out == ""


def test_its_variables_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "all"))
    monkeypatch.setenv("TRACKIO_PROJECT", "kindness")
    report_a_run(tmp_path / "run", TRACKIO)
    assert len(rows("kindness")[1]) == 4
    assert not (tmp_path / "run" / "trackio").exists()


def test_a_server_without_a_token_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:1")
    with pytest.raises(RunError, match=r"asks for trackio, .* write token.* Set TRACKIO_SPACE_ID .* or none of them"):
        open_sinks("r-1", run_pb2.RunSpec(sinks=[TRACKIO]), tmp_path)

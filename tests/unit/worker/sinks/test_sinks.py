"""TensorBoard and Weights & Biases, the real libraries: what a run reports is read back from their files."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.spec.load import SpecFile
from charter.spec.problems import SpecError
from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.sinks.base import Ending
from charter.worker.sinks.opening import OpenSink, open_sinks
from charter.worker.sinks.tensorboard import FOLDER

from tests.support.reports import report_a_run

TENSORBOARD, WANDB = run_pb2.SINK_TENSORBOARD, run_pb2.SINK_WANDB
MLFLOW, TRACKIO = run_pb2.SINK_MLFLOW, run_pb2.SINK_TRACKIO


def test_tensorboard_reads_back_what_was_reported(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report_a_run(tmp_path, TENSORBOARD)
    found = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    assert set(found.Tags()["scalars"]) == {
        "fitting_preference_model/train_loss", "ppo/reward_mean", "ppo/score_mean.helpful",
    }  # fmt: skip
    assert [(one.step, one.value) for one in found.Scalars("ppo/reward_mean")] == [(1, 0.25), (2, 0.5)]
    losses = found.Scalars("fitting_preference_model/train_loss")
    assert [(one.step, one.value) for one in losses] == [(1, pytest.approx(0.7)), (2, pytest.approx(0.5))]
    written = [json.loads(line)["time"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(written) == 6
    assert losses[0].wall_time <= losses[1].wall_time <= found.Scalars("ppo/reward_mean")[0].wall_time


def test_a_resumed_run_writes_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report_a_run(tmp_path, TENSORBOARD)
    report_a_run(tmp_path, TENSORBOARD)
    found = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    # Numbers without a step stand at their event, and events count on.
    assert [one.step for one in found.Scalars("fitting_preference_model/train_loss")] == [1, 2, 7, 8]


class Full:
    """A tracker of somebody's, whose disk is full."""

    def write(self, event: run_pb2.RunEvent) -> None:
        raise OSError(28, "No space left on device", str(event.step))

    def close(self, ending: Ending) -> None:
        raise RuntimeError(f"cannot say that it {ending.name}")


def test_no_error_of_a_tracker_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    sink = OpenSink(Full())
    for step in range(3):
        sink.write(run_pb2.RunEvent(phase=run_pb2.PHASE_PPO, step=step, metrics={"reward_mean": 1.0}))
    sink.close(Ending.FINISHED)
    assert caplog.messages == [
        "Full did not take the numbers of an event: [Errno 28] No space left on device: '0'",
        "Full was not closed: cannot say that it FINISHED",
        "Full lacks the numbers of 3 events",
    ]


@pytest.fixture
def _wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library begins anew: it keeps what it once read of the environment."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    wandb.teardown()
    yield
    wandb.teardown()


def wandb_records(folder: Path) -> list[Any]:
    """What the library keeps of an offline run.

    Its file is a log as LevelDB writes it, behind seven bytes of W&B's own: blocks of 32 KiB of records with checksum,
    length and type (1 whole, 2 begin, 3 middle, 4 end).
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = (folder / "wandb").glob("offline-run-*/run-r-1.wandb")
    content, place, data, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            records.append(record)
            data = b""
    return records


@pytest.mark.usefixtures("_wandb")
def test_wandb_keeps_what_was_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    report_a_run(tmp_path, WANDB, Ending.FAILED)
    # Its own process writes the file, and has when it has ended.
    wandb.teardown()
    records = wandb_records(tmp_path)
    assert [one.exit.exit_code for one in records if one.HasField("exit")] == [1]
    (run,) = [one.run for one in records if one.HasField("run")]
    assert (run.run_id, run.project) == ("r-1", "charter")
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in one.history.item}
        for one in records
        if one.HasField("history")
    ]
    numbers = [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]
    assert numbers == [
        {"fitting_preference_model/train_loss": 0.7, "event": 1},
        {"fitting_preference_model/train_loss": 0.5, "event": 2},
        {"ppo/reward_mean": 0.25, "ppo/score_mean.helpful": -1.5, "event": 4, "step": 1},
        {"ppo/reward_mean": 0.5, "ppo/score_mean.helpful": -1.5, "event": 6, "step": 2},
    ]


@pytest.mark.parametrize(
    ("sink", "module", "name"),
    [
        (TENSORBOARD, "torch.utils.tensorboard", "tensorboard"),
        (WANDB, "wandb", "wandb"),
        (MLFLOW, "mlflow", "mlflow"),
        (TRACKIO, "trackio", "trackio"),
    ],
)
def test_a_missing_library_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: "run_pb2.Sink.ValueType", module: str, name: str
) -> None:
    # None in sys.modules is Python's own way to say that a module cannot be imported.
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunError, match=rf"asks for {name}, .* pip install 'charter\[{name}\]'"):
        open_sinks("r-1", run_pb2.RunSpec(sinks=[sink]), tmp_path)


@pytest.mark.usefixtures("_wandb")
def test_wandb_without_a_key_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    with pytest.raises(RunError, match=r"asks for wandb, .* Set WANDB_API_KEY .* or WANDB_MODE=offline"):
        open_sinks("r-1", run_pb2.RunSpec(sinks=[WANDB]), tmp_path)


def test_one_line_of_the_spec_asks_for_them(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    start = (
        "name: x\npolicy: {model: org/a}\njudge: {model: org/b}\n"
        "prompts: {train: [train.jsonl], held_out: [held_out.jsonl]}\n"
    )
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Hello"}\n')
    file.write_text(start + "sinks: [tensorboard, wandb, mlflow, trackio]\n")
    assert list(SpecFile(file).spec.sinks) == [TENSORBOARD, WANDB, MLFLOW, TRACKIO]
    file.write_text(start + "sinks: [tensorboad]\n")
    with pytest.raises(SpecError, match=r"sinks\[0\]: .*tensorboard, wandb"):
        SpecFile(file).raise_if_wrong()

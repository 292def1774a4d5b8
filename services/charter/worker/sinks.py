"""Where a run's numbers go beside ``events.jsonl`` and Prometheus: TensorBoard and Weights & Biases, by ``sinks``.

A number is called PHASE/NAME in both, for example ``ppo/reward_mean``. Those of a PPO step stand at their step,
others at the number of their event. A run that was resumed writes on; what it does again stands there again.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from google.protobuf import json_format

from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.metrics import phase_name

# Folder of the event files, in the run's folder.
TENSORBOARD_FOLDER = "tensorboard"
DEFAULT_PROJECT = "charter"


class Sink(Protocol):
    """Takes the numbers of events, in their order."""

    def write(self, event: run_pb2.RunEvent) -> None:
        """Take those of one event that has some."""

    def close(self) -> None:
        """Everything is on its way or on the disk when this returns."""


class TensorBoard:
    """Event files in the run's folder: ``tensorboard --logdir CHARTER_HOME/runs`` shows all runs side by side."""

    def __init__(self, run_id: str, spec: run_pb2.RunSpec, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        self._writer: Any = SummaryWriter(str(folder / TENSORBOARD_FOLDER))

    def write(self, event: run_pb2.RunEvent) -> None:
        """A scalar each."""
        time = event.time.ToMicroseconds() / 1e6
        for name, value in _named(event).items():
            self._writer.add_scalar(
                name, value, event.step if event.HasField("step") else event.sequence, walltime=time
            )
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the same id in W&B, with the spec as its configuration. Its variables say where and how it is kept."""

    def __init__(self, run_id: str, spec: run_pb2.RunSpec, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from error
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
                id=run_id,
                name=run_id,
                dir=str(folder),
                resume="allow",
                config=json_format.MessageToDict(spec, preserving_proto_field_name=True),
                # Numbers only: no code, no console, no repository.
                settings=wandb.Settings(console="off", disable_code=True, disable_git=True, silent=True),
            )
        except wandb.Error as error:
            raise RunError(
                f"`sinks` asks for wandb, and it does not start: {str(error).rstrip('.')}. Set WANDB_API_KEY where the "
                "worker runs, or WANDB_MODE=offline to keep its files in the run's folder"
            ) from error
        self._run.define_metric("*", step_metric="event")
        for phase in ("pretraining", "supervised", "revising", "dpo", "kto", "ppo"):
            self._run.define_metric(f"{phase}/*", step_metric="step")

    def write(self, event: run_pb2.RunEvent) -> None:
        """All numbers at once, with what they stand at."""
        numbers = {**_named(event), "event": event.sequence}
        self._run.log({**numbers, "step": event.step} if event.HasField("step") else numbers)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


SINKS: dict[int, Callable[[str, run_pb2.RunSpec, Path], Sink]] = {
    run_pb2.SINK_TENSORBOARD: TensorBoard,
    run_pb2.SINK_WANDB: WeightsAndBiases,
}


def open_sinks(run_id: str, spec: run_pb2.RunSpec, folder: Path) -> list[Sink]:
    """Those that the spec names, each once. Raises ``RunError`` for one that is not installed or does not start."""
    return [SINKS[one](run_id, spec, folder) for one in dict.fromkeys(spec.sinks)]


def _named(event: run_pb2.RunEvent) -> dict[str, float]:
    phase = phase_name(event.phase).lower()
    return {f"{phase}/{name}": value for name, value in event.metrics.items()}


def _missing(name: str, error: ImportError) -> RunError:
    return RunError(
        f"`sinks` asks for {name}, which cannot be imported where the worker runs ({error}): "
        f"pip install 'charter[{name}]' there"
    )

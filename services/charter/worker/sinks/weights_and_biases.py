"""A run of the same id in Weights & Biases."""

import os
from pathlib import Path
from typing import Any

from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.sinks.base import DEFAULT_PROJECT, Ending, configuration, missing, named


class WeightsAndBiases:
    """A run of the same id in W&B, with the spec as its configuration. Its variables say where and how it is kept."""

    def __init__(self, run_id: str, spec: run_pb2.RunSpec, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing("wandb", error) from error
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
                id=run_id,
                name=run_id,
                dir=str(folder),
                resume="allow",
                config=configuration(spec),
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
        numbers = {**named(event), "event": event.sequence}
        self._run.log({**numbers, "step": event.step} if event.HasField("step") else numbers)

    def close(self, ending: Ending) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if ending is Ending.FINISHED else 1)

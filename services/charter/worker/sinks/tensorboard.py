"""Event files in the run's folder, for `tensorboard --logdir`."""

from pathlib import Path
from typing import Any

from charter.v1 import run_pb2
from charter.worker.sinks.base import Ending, missing, named, place_of

# In the run's folder.
FOLDER = "tensorboard"


class TensorBoard:
    """Event files in the run's folder: ``tensorboard --logdir CHARTER_HOME/runs`` shows all runs side by side."""

    def __init__(self, run_id: str, spec: run_pb2.RunSpec, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing("tensorboard", error) from error
        self._writer: Any = SummaryWriter(str(folder / FOLDER))

    def write(self, event: run_pb2.RunEvent) -> None:
        """A scalar each."""
        time = event.time.ToMicroseconds() / 1e6
        for name, value in named(event).items():
            self._writer.add_scalar(name, value, place_of(event), walltime=time)
        self._writer.flush()

    def close(self, ending: Ending) -> None:
        """Close the file."""
        self._writer.close()

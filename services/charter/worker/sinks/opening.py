"""The sinks that there are, and those that a spec names."""

import logging
from collections.abc import Callable
from pathlib import Path

from charter.v1 import run_pb2
from charter.worker.sinks.base import Ending, Sink, Untaken
from charter.worker.sinks.mlflow import MLflow
from charter.worker.sinks.tensorboard import TensorBoard
from charter.worker.sinks.trackio import Trackio
from charter.worker.sinks.weights_and_biases import WeightsAndBiases

logger = logging.getLogger("charter.worker")

SINKS: dict[int, Callable[[str, run_pb2.RunSpec, Path], Sink]] = {
    run_pb2.SINK_TENSORBOARD: TensorBoard,
    run_pb2.SINK_WANDB: WeightsAndBiases,
    run_pb2.SINK_MLFLOW: MLflow,
    run_pb2.SINK_TRACKIO: Trackio,
}


class OpenSink:
    """A sink of a run, which goes on whatever its library raises: what is not taken is counted and said."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._name = type(sink).__name__
        self._untaken = Untaken(self._name)

    def write(self, event: run_pb2.RunEvent) -> None:
        """Take the numbers of an event, if the library does."""
        try:
            self._sink.write(event)
        except Exception as error:  # noqa: BLE001 (whatever a tracker raises: the run is worth more than its numbers there)
            self._untaken.add(error)

    def close(self, ending: Ending) -> None:
        """Close it, and say what it lacks."""
        try:
            self._sink.close(ending)
        except Exception as error:  # noqa: BLE001 (as above)
            logger.warning("%s was not closed: %s", self._name, error)
        self._untaken.tell()


def open_sinks(run_id: str, spec: run_pb2.RunSpec, folder: Path) -> list[OpenSink]:
    """Those that the spec names, each once. Raises ``RunError`` for one that is not installed or does not start."""
    return [OpenSink(SINKS[one](run_id, spec, folder)) for one in dict.fromkeys(spec.sinks)]

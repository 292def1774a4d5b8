"""A run in MLflow, found again by its tag."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.sinks.base import DEFAULT_PROJECT, Ending, Untaken, configuration, missing, named, place_of

logger = logging.getLogger("charter.worker")

# Where it is kept unless MLFLOW_TRACKING_URI says so: in the run's folder.
FILE = "mlflow.db"
# Names a Charter run; MLflow gives ids of its own.
TAG = "charter.run"
# How long the last numbers wait for a server that is away.
_PATIENCE_SECONDS = 60.0
# MLflow's limit for one call.
_PARAMS_AT_ONCE = 100
# What no metric of MLflow has in its name.
_FORBIDDEN = re.compile(r"[^/\w.\- :]")


class MLflow:
    """A run of this name in MLflow, with the spec as its parameters. Its variables say where and how it is kept.

    Numbers are sent from a thread of its own: what a server does not take is counted and said, and stops no run.
    """

    def __init__(self, run_id: str, spec: run_pb2.RunSpec, folder: Path) -> None:
        # Who wants the library to tell its makers how it is used says so.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise missing("mlflow", error) from error
        self._metric = Metric
        self._untaken = Untaken(type(self).__name__)
        uri = os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{(folder / FILE).absolute()}"
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_PROJECT))
            earlier = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run_id}'", max_results=1)
            if earlier:
                self._id = earlier[0].info.run_id
                self._client.update_run(self._id, status="RUNNING")
            else:
                self._id = self._client.create_run(experiment, run_name=run_id, tags={TAG: run_id}).info.run_id
                # Once: MLflow refuses to change them, and a resumed run may have a corrected spec.
                parameters = [Param(name, value) for name, value in _flat(configuration(spec))]
                for start in range(0, len(parameters), _PARAMS_AT_ONCE):
                    self._client.log_batch(self._id, params=parameters[start : start + _PARAMS_AT_ONCE])
        except MlflowException as error:
            raise RunError(
                f"`sinks` asks for mlflow, and it does not start: {str(error).rstrip('.')}. Set MLFLOW_TRACKING_URI "
                "(and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN) where the "
                f"worker runs, or leave it unset to keep {FILE} in the run's folder"
            ) from error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._sent: set[Future[None]] = set()

    def write(self, event: run_pb2.RunEvent) -> None:
        """All numbers of an event in one call."""
        milliseconds = event.time.ToMilliseconds()
        metrics = [
            self._metric(_FORBIDDEN.sub("_", name), value, milliseconds, place_of(event))
            for name, value in named(event).items()
        ]
        self._sent = {one for one in self._sent if not one.done()}
        self._sent.add(self._thread.submit(self._send, metrics))

    def close(self, ending: Ending) -> None:
        """Send what is left, as far as the server takes it, and say how the run ended."""
        status = {Ending.FINISHED: "FINISHED", Ending.STOPPED: "KILLED", Ending.FAILED: "FAILED"}[ending]
        self._sent.add(self._thread.submit(self._end, status))
        left = wait(self._sent, timeout=_PATIENCE_SECONDS).not_done
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._untaken.tell()
        if left:
            logger.warning("MLflow did not take the numbers of the last events in time", extra={"events": len(left)})

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _send(self, metrics: list[Any]) -> None:
        try:
            self._client.log_batch(self._id, metrics=metrics)
        except Exception as error:  # noqa: BLE001 (nobody waits for the thread: it would be lost)
            self._untaken.add(error)

    def _end(self, status: str) -> None:
        try:
            self._client.set_terminated(self._id, status)
        except Exception as error:  # noqa: BLE001 (as above)
            logger.warning("MLflow did not take how the run ended: %s", error)


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Fields by their paths, such as ``ppo.steps``; a list is one."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", str(value)

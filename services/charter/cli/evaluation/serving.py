"""Serves the models and judges of an evaluation, one at a time; those that run already are taken as they are."""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from charter.atomic_files import write_json
from charter.cli.local.processes import (
    engine_here,
    judge_options,
    limit_options,
    model_options,
    serve_command,
    stop_services,
    wait_serving,
)
from charter.cli.services import HOST, Endpoint, Started, launch
from charter.trainer.processes import ProcessId
from charter.v1 import evaluation_pb2
from charter.worker.errors import RunError


class LocalServers:
    """Processes of this machine, by `charter serve`, on free ports.

    ``folder`` is the evaluation's: it has their state, and remembers the one that runs, so that the next command stops
    what one that was killed has left.
    """

    def __init__(self, name: str, folder: Path, say: Console) -> None:
        self._name, self._home, self._say = name, folder / "services", say
        self._running = folder / "serving.json"

    @contextmanager
    def model(self, model: evaluation_pb2.EvaluatedModel) -> Iterator[str]:
        """A policy service of the model, while the block lasts."""
        if model.address:
            yield model.address
            return
        served = str(Path(model.run) / "policy") if model.run else model.model
        options = [*model_options(served, model.chat_template, model.eos_token)]
        options += ["--engine", engine_here(model.engine or "auto")]
        if model.endpoint:
            options += ["--setting", f"endpoint={model.endpoint}"]
        options += limit_options(model.limits)
        with self._served("policy", options) as address:
            yield address

    @contextmanager
    def judge(self, judge: evaluation_pb2.EvaluationJudge) -> Iterator[str]:
        """A judge service, while the block lasts."""
        if judge.address:
            yield judge.address
            return
        with self._served("judge", judge_options(judge, model_options(judge.model))) as address:
            yield address

    def stop_left_over(self) -> None:
        """End what a command that was killed had started."""
        if self._running.exists():
            found = json.loads(self._running.read_text(encoding="utf-8"))
            ProcessId(int(found["pid"]), float(found["started"])).stop(force=True)
            self._running.unlink()

    @contextmanager
    def _served(self, service: str, options: Sequence[str]) -> Iterator[str]:
        main, control, metrics = _free_addresses(3)
        # Only the policy has a control port that has to be moved.
        at = Endpoint(main, control if service == "policy" else "", metrics)
        command = serve_command(service, at, options)
        running: dict[str, Started] = {}
        try:
            # A state folder of its own: weights on their way into another service of this machine are none of its.
            environment = {"CHARTER_HOME": str(self._home)}
            running[service] = launch(f"{self._name}-{service}", command, at, environment)
            write_json(self._running, asdict(running[service].process))
            if wait_serving(running, self._say):
                ended = running[service]
                raise RunError(
                    f"the {service} service ended before it was serving. The end of {ended.log}:\n{ended.last_words()}"
                )
            yield at.main
        finally:
            stop_services(running, self._say)
            self._running.unlink(missing_ok=True)


def _free_addresses(count: int) -> list[str]:
    """Addresses that nothing listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [f"{HOST}:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()

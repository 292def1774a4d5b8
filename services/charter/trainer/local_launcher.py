"""Starts each worker as a process group on this machine."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from charter.trainer.last_words import LastWords, last_words
from charter.trainer.launcher import WorkerExit, WorkerOrder
from charter.trainer.processes import ProcessId

LOG_FILE = "worker.log"
WORKER_COMMAND = (sys.executable, "-m", "charter.worker")

_POLL_SECONDS = 0.2
_TAIL_BYTES = 20_000
_ATTEMPT_LINE = "=== attempt"


class LocalLauncher:
    """Launcher of local processes. ``command`` is what a worker is started with, before its arguments."""

    shares_files = True

    def __init__(self, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._command = tuple(command)
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    async def start(self, order: WorkerOrder) -> str:
        """Start a process in its own group, with its output in ``worker.log``."""
        return await asyncio.to_thread(self._start, order)

    def _start(self, order: WorkerOrder) -> str:
        arguments = {
            "--run-id": order.run_id,
            "--attempt": str(order.attempt),
            "--trainer": order.trainer,
            "--artifacts": str(order.artifacts),
            "--spec": str(order.artifacts / "spec.json"),
        }
        with (order.artifacts / LOG_FILE).open("ab") as log:
            log.write(f"{_ATTEMPT_LINE} {order.attempt}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC ===\n".encode())
            log.flush()
            child = subprocess.Popen(
                [*self._command, *(part for pair in arguments.items() for part in pair)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own group: Ctrl-C of the trainer's terminal does not reach it, and it can be stopped whole.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self._children[child.pid] = child
        return json.dumps(asdict(ProcessId.of(child.pid)))

    def find(self, order: WorkerOrder) -> str:
        """Nothing: a process that nobody noted cannot be told from others."""
        return ""

    async def wait(self, worker: str, artifacts: Path) -> WorkerExit:
        """Return when the process has ended."""
        process = _process(worker)
        child = self._children.get(process.pid) if process else None
        # Polled, because a worker of an earlier trainer is not a child that could be waited for.
        while child.poll() is None if child else process is not None and process.alive():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        log = artifacts / LOG_FILE
        said = _said(log)
        if child is None:
            return WorkerExit(None, f"it ended unseen{_in_words(log, said)}")
        del self._children[child.pid]
        status = child.returncode
        how = (
            f"it was killed by {signal.Signals(-status).name}" if status < 0 else f"it ended with exit status {status}"
        )
        return WorkerExit(status, how + _in_words(log, said), said.why(status))

    async def stop(self, worker: str, force: bool) -> None:
        """Send SIGTERM, or SIGKILL, to the process group."""
        if process := _process(worker):
            process.stop(force)


def _process(worker: str) -> ProcessId | None:
    return ProcessId(**json.loads(worker)) if worker else None


def _said(log: Path) -> LastWords:
    """What the worker wrote last; nothing where it has no log."""
    if not log.exists():
        return LastWords("", worded=False)
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return last_words(file.read().decode(errors="replace"))


def _in_words(log: Path, said: LastWords) -> str:
    """The last line of the log, worded as the end of a sentence."""
    if not log.exists():
        return f"; its log {log} is not there: was the run's folder deleted, emptied or moved?"
    if not said.text or said.text.startswith(_ATTEMPT_LINE):
        return f"; it wrote nothing to {log}"
    return f"; the last line of {log} is: {said.text}"

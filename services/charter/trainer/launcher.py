"""What the trainer asks of the thing that starts workers: a local process now, a Kubernetes Job in a cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """One start of a run's worker. ``artifacts`` holds ``spec.json`` when the worker starts."""

    run_id: str
    attempt: int
    artifacts: Path
    # Control address of the trainer, host:port.
    trainer: str


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker ended. ``status`` is None when nobody could see it; ``reason`` says it for a person.

    ``stated`` is the error that the worker itself worded as why it cannot go on; empty where it crashed or was ended.
    """

    status: int | None
    reason: str
    stated: str = ""


class Launcher(Protocol):
    """Starts, watches and stops workers. A worker outlives the trainer that started it."""

    # Whether its workers find under every path what the trainer finds there.
    shares_files: bool

    async def start(self, order: WorkerOrder) -> str:
        """Start a worker; the returned text finds it again, after a restart of the trainer too.

        Raises ``OSError`` when it cannot be started.
        """

    def find(self, order: WorkerOrder) -> str:
        """What ``start`` returned for an order, or would have; empty when only ``start`` can tell."""

    async def wait(self, worker: str, artifacts: Path) -> WorkerExit:
        """Return when the worker has ended; at once when it is not there any more."""

    async def stop(self, worker: str, force: bool) -> None:
        """Ask the worker to end, or with ``force`` end it. Nothing happens when it has ended already."""

"""A trainer's launcher whose workers are forked from a process that has imported everything: starts take no time."""

import asyncio
import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path

from charter.trainer.launcher import WorkerExit, WorkerOrder

from tests.support import worker_process

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([worker_process.__name__])


class ForkedLauncher:
    """Workers that end with this process."""

    shares_files = True

    def __init__(self) -> None:
        self.workers: dict[str, BaseProcess] = {}
        # The imports take longer than a client of the trainer waits.
        first = _PROCESSES.Process(target=int)
        first.start()
        first.join()

    async def start(self, order: WorkerOrder) -> str:
        """Fork one."""
        spec = order.artifacts / "spec.json"
        options = {
            "run-id": order.run_id,
            "attempt": order.attempt,
            "trainer": order.trainer,
            "artifacts": order.artifacts,
            "spec": spec,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        worker = _PROCESSES.Process(target=worker_process.run, args=(arguments, None), daemon=True)
        await asyncio.to_thread(worker.start)
        name = f"{order.run_id} {order.attempt}"
        self.workers[name] = worker
        return name

    def find(self, order: WorkerOrder) -> str:
        """The one of an order."""
        name = f"{order.run_id} {order.attempt}"
        return name if name in self.workers else ""

    async def wait(self, worker: str, artifacts: Path) -> WorkerExit:
        """Return when it has ended."""
        process = self.workers[worker]
        await asyncio.to_thread(process.join)
        return WorkerExit(process.exitcode, f"it ended with exit status {process.exitcode}")

    async def stop(self, worker: str, force: bool) -> None:
        """SIGKILL or SIGTERM."""
        process = self.workers[worker]
        process.kill() if force else process.terminate()

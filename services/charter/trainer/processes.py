"""Processes that outlive the one that started them: found again by id and start time, stopped as a group.

psutil is imported where it is used: commands that start nothing do not wait for it.
"""

import contextlib
import os
import signal
from dataclasses import dataclass

# The start time of a process is only as exact as the kernel's clock tick.
_START_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that leads its group. ``started`` (Unix seconds) tells it from a later one with the same id."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """Identity of a process that was just started by this one (and not yet waited for)."""
        import psutil  # type: ignore[import-untyped]

        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        """Whether the process still runs."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) <= _START_TOLERANCE_SECONDS
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def stop(self, force: bool = False) -> None:
        """Send SIGTERM, or SIGKILL, to the process group. Nothing happens when it has ended already."""
        # It may end between the look and the signal.
        with contextlib.suppress(ProcessLookupError):
            if self.alive():
                os.killpg(self.pid, signal.SIGKILL if force else signal.SIGTERM)

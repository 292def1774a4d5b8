"""How a run waits for a service that is away: it says so, more and more rarely, and gives up in the end."""

import time
from collections.abc import Callable

import grpc

from charter.rpc.errors import ServiceError
from charter.worker.errors import RunError
from charter.worker.reporter import Reporter

# Statuses of a service that is gone, going, or changing its weights.
AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DATA_LOSS,
)
# How often the same may be asked of a service that does not answer in time.
MOST_FAULTS = 3
# A wait is told after the first, again after the second, then each time after twice as long, at most the third.
_FIRST_SECONDS, _SECOND_SECONDS, _LONGEST_SECONDS = 1.0, 10.0, 600.0
# Between two tries to reach a service: doubled from the first to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0


class WaitedTooLongError(RunError):
    """A service was away for longer than ``services.max_wait_seconds``; the run can be resumed."""


class Patience:
    """One wait for ``service``, from now on."""

    def __init__(
        self,
        service: str,
        reporter: Reporter,
        max_wait_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._now = now
        self._reporter = reporter
        self._limit = max_wait_seconds
        self.renew()

    def renew(self) -> None:
        """Begin again: something came."""
        self._since = self._now()
        self._say_at = self._since + _FIRST_SECONDS
        self._next_say = _SECOND_SECONDS
        self._said = False
        self._pause = _FIRST_PAUSE
        self._faults = 0

    def wait(self, error: ServiceError) -> None:
        """Wait before the next try.

        Raises ``error`` when no waiting mends it, or when there was no answer in time for ``MOST_FAULTS`` tries;
        otherwise as ``check``.
        """
        overloaded = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_seconds is not None
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._faults += 1
            if self._faults == MOST_FAULTS:
                raise error
        elif error.code not in AWAY and not overloaded:
            raise error
        self.check(str(error))
        end = time.monotonic() + (error.retry_after_seconds or self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            self._reporter.raise_if_stopped()

    def check(self, problem: str) -> None:
        """Say that the run waits because of ``problem``, when it is time to.

        Raises ``Cancelled`` when the run is asked to stop, ``WaitedTooLongError``.
        """
        self._reporter.raise_if_stopped()
        now = self._now()
        waited = now - self._since
        if waited >= self._limit:
            raise WaitedTooLongError(
                f"waited {_duration(waited)} for the {self._service} service, services.max_wait_seconds allows no "
                f"more: {problem} When it is back, resume the run: it goes on from its newest checkpoint"
            )
        if now < self._say_at:
            return
        if self._said:
            text = f"still waiting for the {self._service} service, {_duration(waited)} by now"
        else:
            text = f"waiting: {problem} The run goes on when it is back."
        self._said = True
        self._say_at = now + self._next_say
        self._next_say = min(2 * self._next_say, _LONGEST_SECONDS)
        self._reporter.report(0, 0, text=text)
        # The trainer may have asked to stop in its answer.
        self._reporter.raise_if_stopped()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

"""How long a run waits for a service, and what it says meanwhile."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from charter.rpc.errors import ServiceError
from charter.runs.artifacts import Artifacts
from charter.worker.clients.patience import Patience, WaitedTooLongError
from charter.worker.errors import Cancelled
from charter.worker.reporter import Reporter

from tests.support.worker_trainer import listening

LONG = "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:9: Failed to connect to remote host: "


class Clock:
    """Seconds that a test sets."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[Reporter]:
    with closing(Reporter(Artifacts(tmp_path, "r"), "r", 1, "")) as one:
        yield one


def said(reporter: Reporter) -> list[str]:
    return [event.text for event in reporter._waiting]


def away(details: str = LONG + "Connection refused") -> ServiceError:
    return ServiceError("judge", "127.0.0.1:9", grpc.StatusCode.UNAVAILABLE, details)


def test_it_says_so_more_and_more_rarely_and_briefly(reporter: Reporter) -> None:
    clock = Clock()
    patience = Patience("judge", reporter, 7200, clock)
    at = []
    for second in range(7100):
        clock.seconds = 100 + second
        before = len(said(reporter))
        patience.check(str(away()))
        at += [second] * (len(said(reporter)) - before)
    assert at[:6] == [1, 11, 31, 71, 151, 311]
    assert at[6:] == [631, *range(1231, 7100, 600)]
    first, *later = said(reporter)
    assert first == (
        "waiting: the judge service at 127.0.0.1:9 cannot be reached (Connection refused). Is it running? `charter "
        "status` tells; `charter up` starts all services, `charter serve judge` this one. The run goes on when it is "
        "back."
    )
    assert later[0] == "still waiting for the judge service, 11 s by now"
    assert later[-1] == "still waiting for the judge service, 111 min by now"


def test_it_ends_with_a_typed_error_and_begins_again_when_something_came(reporter: Reporter) -> None:
    clock = Clock()
    patience = Patience("judge", reporter, 60, clock)
    clock.seconds += 59
    patience.check("it is away.")
    patience.renew()
    clock.seconds += 59
    patience.check("it is away.")
    clock.seconds += 1
    with pytest.raises(
        WaitedTooLongError, match=r"waited 60 s for the judge .*max_wait_seconds.* it is away\. .*resume"
    ):
        patience.check("it is away.")


@pytest.mark.parametrize(
    ("code", "retry_after", "tries"),
    [
        (grpc.StatusCode.UNAVAILABLE, 0.001, 10),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.001, 10),
        # Nobody says when it will be better: the disk is full.
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, 0),
        (grpc.StatusCode.INVALID_ARGUMENT, None, 0),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 0.001, 2),
    ],
)
def test_what_is_waited_for(reporter: Reporter, code: grpc.StatusCode, retry_after: float | None, tries: int) -> None:
    patience = Patience("judge", reporter, 60)
    error = ServiceError("judge", "127.0.0.1:9", code, "why", retry_after)
    for _ in range(tries):
        patience.wait(error)
    if tries < 10:
        with pytest.raises(ServiceError, match="why"):
            patience.wait(error)


def test_a_run_that_is_asked_to_stop_stops_waiting(tmp_path: Path) -> None:
    with listening(lambda event: event.text.startswith("waiting")) as (address, _):
        clock = Clock()
        with closing(Reporter(Artifacts(tmp_path, "r"), "r", 1, address)) as reporter:
            patience = Patience("judge", reporter, 60, clock)
            clock.seconds += 2
            with pytest.raises(Cancelled):
                patience.check("it is away.")

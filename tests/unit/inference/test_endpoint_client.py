"""Calls of an endpoint over real HTTP: what is tried again, what is bounded, what is counted."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from charter.inference.endpoint.client import EndpointClient, Limits, retry_after
from charter.inference.endpoint.reply import Reply
from charter.inference.engine import BudgetSpentError, RefusedRequestError

from tests.support.endpoint import MODEL, Answer, Body, Endpoint, Failure, endpoint

HI = [{"role": "user", "content": "Hi"}]


@asynccontextmanager
async def client(
    reply: Callable[[Body], Answer | Failure], **limits: int
) -> AsyncIterator[tuple[EndpointClient, Endpoint]]:
    with endpoint(reply) as served:
        calling = EndpointClient(MODEL, served.url, "key", Limits(**limits))
        yield calling, served
        await calling.close()


async def complete(calling: EndpointClient) -> Reply:
    return await calling.complete(HI, {"max_tokens": 1})


def replies(*those: Answer | Failure) -> Callable[[Body], Answer | Failure]:
    """Each once, the last for ever."""
    waiting = iter(those[:-1])
    return lambda body: next(waiting, those[-1])


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_what_passes_is_tried_again(status: int) -> None:
    async with client(replies(Failure(status), Failure(status), Answer("yes"))) as (calling, served):
        assert (await complete(calling)).text == "yes"
    assert len(served.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422])
async def test_what_does_not_pass_is_not_tried_again(status: int) -> None:
    expected = RefusedRequestError if status in (400, 413, 422) else ConnectionError
    async with client(replies(Failure(status))) as (calling, served):
        with pytest.raises(expected):
            await complete(calling)
    assert len(served.requests) == 1


async def test_an_empty_account_is_not_tried_again() -> None:
    async with client(replies(Failure(429, "pay first", "insufficient_quota"))) as (calling, served):
        with pytest.raises(ConnectionError, match="pay first"):
            await complete(calling)
    assert len(served.requests) == 1


async def test_retries_end() -> None:
    async with client(replies(Failure(503))) as (calling, served):
        with pytest.raises(ConnectionError, match=f"does not serve {MODEL}"):
            await complete(calling)
    assert len(served.requests) == 5


async def test_a_pause_that_is_too_long_is_not_waited_for() -> None:
    async with client(replies(Failure(429, headers={"retry-after": "3600"}), Answer("late"))) as (calling, served):
        with pytest.raises(ConnectionError):
            await complete(calling)
    assert len(served.requests) == 1


def test_retry_after_is_read_in_each_form() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after({"retry-after": in_a_minute}) == pytest.approx(60, abs=5)
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert retry_after({"retry-after": past}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


async def test_no_more_calls_at_a_time_than_allowed() -> None:
    barrier = threading.Barrier(3, timeout=30)

    def reply(body: Body) -> Answer:
        # Three calls must be there at once for any to be answered; a fourth would show in most_at_once.
        barrier.wait()
        return Answer("yes")

    async with client(reply, concurrent_calls=3) as (calling, served):
        await asyncio.gather(*(complete(calling) for _ in range(9)))
    assert served.most_at_once == 3


async def test_an_endpoint_that_is_down_is_left_alone() -> None:
    async with client(replies(Failure(500)), concurrent_calls=1) as (calling, served):
        for _ in range(8):
            with pytest.raises(ConnectionError, match="told to fail"):
                await complete(calling)
        asked = len(served.requests)
        for _ in range(20):
            with pytest.raises(ConnectionError, match=r"failed 8 calls in a row and is left alone for \d+ more"):
                await complete(calling)
        assert len(served.requests) == asked == 8 * 5


async def test_a_limited_endpoint_is_not_down() -> None:
    async with client(replies(*[Failure(429)] * 50, Answer("yes"))) as (calling, _):
        for _ in range(10):
            with pytest.raises(ConnectionError):
                await complete(calling)
        assert (await complete(calling)).text == "yes"


async def test_the_budget_ends_the_calls() -> None:
    async with client(replies(Answer("yes")), token_budget=20) as (calling, served):
        for _ in range(3):
            await complete(calling)
        with pytest.raises(BudgetSpentError, match=r"token budget of 20 is spent \(24 used\)"):
            await complete(calling)
    assert len(served.requests) == 3


async def test_a_budget_needs_an_endpoint_that_counts() -> None:
    async with client(replies(Answer("yes")), token_budget=20) as (calling, served):
        served.usage = None
        with pytest.raises(ConnectionError, match="reports no usage"):
            await complete(calling)


@pytest.fixture
def web_page() -> Iterator[str]:
    """A server that answers everything with HTML."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>Welcome</html>")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_web_page_is_no_endpoint(web_page: str) -> None:
    calling = EndpointClient(MODEL, web_page, "key", Limits())
    with pytest.raises(ConnectionError, match="base URL"):
        await complete(calling)
    await calling.close()


@pytest.mark.parametrize("limits", [{"concurrent_calls": 0}, {"token_budget": -1}, {"requests_per_minute": 2.5}])
def test_a_bound_that_allows_nothing_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        Limits(**limits)

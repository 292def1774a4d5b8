"""A call whose server dies ends with a status, whatever its kind and however far it is; only unary ones are retried."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import grpc
import pytest
from charter.rpc.channel import connect, connect_async

from tests.support.every_kind import SERVICE

KINDS = ("Unary", "ServerStream", "StartedServerStream", "ClientStream", "Bidi", "StartedBidi")
ONE_ANSWER = ("Unary", "ClientStream")
# The deadline of the calls; they end long before it, and the test fails when one is under way for as long again.
SECONDS = 15.0


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, and its address."""
    command = [sys.executable, "-m", "tests.support.every_kind"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def method(channel: Any, kind: str) -> Any:
    """The call of a kind, which takes and gives bytes."""
    make = {
        "Unary": channel.unary_unary,
        "ServerStream": channel.unary_stream,
        "StartedServerStream": channel.unary_stream,
        "ClientStream": channel.stream_unary,
        "Bidi": channel.stream_stream,
        "StartedBidi": channel.stream_stream,
    }
    return make[kind](f"/{SERVICE}/{kind}")


def requests(kind: str) -> Any:
    return iter([b"one", b"two"]) if kind in ("ClientStream", "Bidi", "StartedBidi") else b"one"


def call(address: str, kind: str) -> None:
    with connect(address) as channel:
        answer = method(channel, kind)(requests(kind), timeout=SECONDS)
        if kind not in ONE_ANSWER:
            list(answer)


def call_on_a_loop(address: str, kind: str) -> None:
    async def ask() -> None:
        async with connect_async(address) as channel:
            answer = method(channel, kind)(requests(kind), timeout=SECONDS)
            if kind in ONE_ANSWER:
                await answer
            else:
                async for _ in answer:
                    pass

    asyncio.run(ask())


def test_calls_of_every_kind_end_when_their_server_is_killed(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    ended: dict[tuple[str, str], grpc.StatusCode] = {}

    def follow(make: Callable[[str, str], None], kind: str) -> None:
        try:
            make(address, kind)
        except grpc.RpcError as error:
            ended[make.__name__, kind] = error.code()  # type: ignore[attr-defined]

    calls = [(make, kind) for make in (call, call_on_a_loop) for kind in KINDS]
    # Daemons: one that hangs fails the test and does not hold it up.
    threads = [threading.Thread(target=follow, args=one, daemon=True) for one in calls]
    for thread in threads:
        thread.start()
    assert process.stdout is not None
    for _ in calls:
        assert process.stdout.readline() == "in flight\n"
    process.kill()
    for thread in threads:
        thread.join(2 * SECONDS)
    assert ended == {(make.__name__, kind): grpc.StatusCode.UNAVAILABLE for make, kind in calls}


@pytest.mark.parametrize(("kind", "attempts"), [("Unary", 2), ("ServerStream", 1), ("ClientStream", 1), ("Bidi", 1)])
def test_only_unary_calls_are_tried_again(kind: str, attempts: int) -> None:
    """Calls that stream end at once, by a connection on which gRPC itself never tries again."""
    asked: list[str] = []

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(self.answer)

        def answer(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
            asked.append(kind)
            if len(asked) == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
            return b"done"

    with ThreadPoolExecutor(1) as threads:
        one = grpc.server(threads, handlers=[Handler()])
        port = one.add_insecure_port("127.0.0.1:0")
        one.start()
        try:
            with nullcontext() if kind == "Unary" else pytest.raises(grpc.RpcError, match="not yet"):
                call(f"127.0.0.1:{port}", kind)
        finally:
            one.stop(0).wait()
    assert len(asked) == attempts

"""Deadlines for progress: a call that streams may last for days, as long as something comes."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import grpc


class StalledError(TimeoutError):
    """A call was given up because nothing came for too long."""


def unless_stalled(stream: Any, seconds: float) -> Iterator[Any]:
    """The responses of ``stream``, a call without a deadline of its own.

    Cancels it and raises ``StalledError`` when no response came for ``seconds``. The time that the reader takes between
    two responses does not count.
    """
    ended = threading.Event()
    waiting_since, stalled = time.monotonic(), False

    def watch() -> None:
        nonlocal stalled
        while not ended.wait(min(seconds, max(0.0, waiting_since + seconds - time.monotonic()))):
            if time.monotonic() - waiting_since >= seconds:
                stalled = True
                stream.cancel()
                return

    threading.Thread(target=watch, name="unless-stalled", daemon=True).start()
    try:
        for response in stream:
            waiting_since = math.inf
            yield response
            waiting_since = time.monotonic()
    except grpc.RpcError as error:
        if not stalled:
            raise
        raise StalledError(f"nothing came for {seconds:g} s") from error
    finally:
        ended.set()
        stream.cancel()


async def unless_stalled_async(stream: Any, seconds: float) -> AsyncGenerator[Any, None]:
    """As ``unless_stalled``, of a call of ``grpc.aio``."""
    responses = aiter(stream)
    try:
        while True:
            try:
                async with asyncio.timeout(seconds):
                    response = await anext(responses)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise StalledError(f"nothing came for {seconds:g} s") from error
            yield response
    finally:
        stream.cancel()

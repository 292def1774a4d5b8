"""A call of ``grpc.aio`` that streams may last as long as something comes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from charter.rpc.stalled import StalledError, unless_stalled_async


async def test_a_stream_that_stalls_is_given_up_and_cancelled() -> None:
    broken_off = asyncio.Event()

    async def pages(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for page in (b"one", b"two"):
            yield page
        if request == b"stall":
            try:
                await asyncio.Event().wait()
            finally:
                broken_off.set()

    handler = grpc.method_handlers_generic_handler("a.Service", {"Pages": grpc.unary_stream_rpc_method_handler(pages)})
    server = grpc.aio.server(handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_stream("/a.Service/Pages")
            missing: Any = channel.unary_stream("/a.Service/Other")
            assert [page async for page in unless_stalled_async(call(b"end"), 60)] == [b"one", b"two"]
            stalling = unless_stalled_async(call(b"stall"), 0.2)
            assert [await anext(stalling), await anext(stalling)] == [b"one", b"two"]
            with pytest.raises(StalledError, match=r"nothing came for 0\.2 s"):
                await anext(stalling)
            await broken_off.wait()
            with pytest.raises(grpc.aio.AioRpcError):
                await anext(unless_stalled_async(missing(b""), 60))
    finally:
        await server.stop(None)

"""A real gateway before real policy services, in a thread."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from charter.gateway.app import build
from charter.gateway.policies import Policies


@contextmanager
def gateway(*unnamed: str, named: Mapping[str, str] | None = None, api_key: str = "") -> Iterator[str]:
    """Serve policies by their addresses; yields the address of the gateway, http://host:port."""
    ready = threading.Event()
    result: list[Any] = []

    async def main() -> None:
        policies = Policies(named or {}, list(unnamed))
        server = uvicorn.Server(uvicorn.Config(build(policies, api_key), port=0, log_level="critical", lifespan="off"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            if task.done():
                task.result()
            await asyncio.sleep(0.01)
        result.append(server)
        ready.set()
        await task
        await policies.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="gateway")
    thread.start()
    ready.wait(60)
    (server,) = result
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)

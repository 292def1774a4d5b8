"""Servers of tests that stand for somebody's own service: a part of a contract, and nothing of ours around it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc


@contextmanager
def bare_server(register: Callable[[grpc.Server], None]) -> Iterator[str]:
    """Address of a server with what ``register`` adds to it."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()

"""A server with a call of every kind, none of which ever ends: a process that tests kill.

``python -m tests.support.every_kind`` prints its port, then a line for each call that has reached it.
"""

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

# Of a service whose unary calls the channel retries.
SERVICE = "charter.v1.JudgeService"
MOST_CALLS = 32


class _Handler(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method.rpartition("/")[2]
        kinds: dict[str, grpc.RpcMethodHandler] = {
            "Unary": grpc.unary_unary_rpc_method_handler(_never),
            "ServerStream": grpc.unary_stream_rpc_method_handler(_nothing),
            "StartedServerStream": grpc.unary_stream_rpc_method_handler(_one),
            "ClientStream": grpc.stream_unary_rpc_method_handler(_never),
            "Bidi": grpc.stream_stream_rpc_method_handler(_nothing),
            "StartedBidi": grpc.stream_stream_rpc_method_handler(_one),
        }
        return kinds[method]


def _never(_request: object, _context: grpc.ServicerContext) -> bytes:
    # In one piece, unlike print.
    os.write(sys.stdout.fileno(), b"in flight\n")
    threading.Event().wait()
    return b""


def _nothing(request: object, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield _never(request, context)


def _one(request: object, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield b"first"
    yield _never(request, context)


def main() -> None:
    """Serve until killed."""
    server = grpc.server(ThreadPoolExecutor(MOST_CALLS), handlers=[_Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    os.write(sys.stdout.fileno(), f"{port}\n".encode())
    server.wait_for_termination()


if __name__ == "__main__":
    main()

"""The trainer's end of the reports, as a real gRPC server that tests can steer."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc

# Sees each new event; True asks the worker to stop.
OnEvent = Callable[[run_pb2.RunEvent], bool]


class Listener(trainer_pb2_grpc.RunReportServiceServicer):
    """Keeps the events, each sequence once, and passes new ones to ``on_event``."""

    def __init__(self, on_event: OnEvent) -> None:
        self.events: dict[int, run_pb2.RunEvent] = {}
        self._on_event = on_event

    def ReportEvents(
        self, request: trainer_pb2.ReportEventsRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.ReportEventsResponse:
        stop = False
        for event in request.events:
            if event.sequence not in self.events:
                self.events[event.sequence] = event
                stop |= self._on_event(event)
        return trainer_pb2.ReportEventsResponse(cancel_requested=stop)


@contextmanager
def listening(on_event: OnEvent, port: int = 0) -> Iterator[tuple[str, Listener]]:
    """Address and listener of a trainer."""
    listener = Listener(on_event)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        trainer_pb2_grpc.add_RunReportServiceServicer_to_server(listener, server)
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield f"127.0.0.1:{bound}", listener
        finally:
            server.stop(0).wait()

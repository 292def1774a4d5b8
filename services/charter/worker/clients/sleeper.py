"""A service's side of sharing a GPU, as the worker calls it: MemoryService on a control port."""

import grpc

from charter.rpc.channel import BATCH, QUICK, connect
from charter.rpc.errors import ServiceError, explained
from charter.v1 import memory_pb2, memory_pb2_grpc

# To bring weights back from main memory.
_WAKE_SECONDS = 300.0


def send_to_sleep(service: str, control: str) -> None:
    """Have a service free its GPU memory, after the calls under way there; one that is away has freed it already.

    Raises ``ServiceError`` when it cannot sleep.
    """
    try:
        with explained(service, control), connect(control) as channel:
            memory_pb2_grpc.MemoryServiceStub(channel).Sleep(memory_pb2.SleepRequest(), timeout=BATCH)
    except ServiceError as error:
        if error.code is not grpc.StatusCode.UNAVAILABLE:
            raise


def wake_up(service: str, control: str, *, seconds: float = _WAKE_SECONDS) -> None:
    """Have a service take its memory back; does nothing to one that is awake. Raises ``ServiceError``."""
    with explained(service, control), connect(control) as channel:
        memory_pb2_grpc.MemoryServiceStub(channel).Wake(memory_pb2.WakeRequest(), timeout=seconds)


def wake_at_the_end(service: str, control: str) -> str:
    """As ``wake_up``, when the worker ends; what went wrong is returned, for its log."""
    try:
        wake_up(service, control, seconds=QUICK)
    except ServiceError as error:
        return str(error)
    return ""

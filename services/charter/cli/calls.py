"""Calls of the services: a channel to each, and its health."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from charter.cli.services import endpoint
from charter.rpc.channel import connect
from charter.rpc.errors import explained

HEALTH_NAMES = {
    "policy": "charter.v1.PolicyService",
    "judge": "charter.v1.JudgeService",
    "preference": "charter.v1.PreferenceService",
    "trainer": "charter.v1.TrainerService",
}
HEALTH_SECONDS = 3.0


@contextmanager
def channel_to(name: str, address: str = "") -> Iterator[grpc.Channel]:
    """A channel to a service; a failed call inside becomes a ``ServiceError`` that names it."""
    address = address or endpoint(name).main
    with connect(address) as channel, explained(name, address):
        yield channel


def health(name: str, address: str) -> str:
    """SERVING, NOT_SERVING (it loads its model, or drains), or UNREACHABLE."""
    request = health_pb2.HealthCheckRequest(service=HEALTH_NAMES[name])
    # A fresh channel each time: a used one waits longer and longer before it tries again.
    with connect(address) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=HEALTH_SECONDS)
        except grpc.RpcError as error:
            # Another service on that port does not know the name.
            code = error.code() if isinstance(error, grpc.Call) else None
            return "ANOTHER SERVICE" if code is grpc.StatusCode.NOT_FOUND else "UNREACHABLE"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

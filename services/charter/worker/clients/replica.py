"""One replica of a service, as the worker sees it."""

import threading
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from charter.rpc.channel import QUICK, connect
from charter.rpc.discovery import ReplicaAddress
from charter.rpc.errors import ServiceError, explained
from charter.v1 import types_pb2, weights_pb2, weights_pb2_grpc


@dataclass(eq=False)
class Replica:
    """One replica. Everything is guarded by the condition of its ``Replicas``."""

    address: ReplicaAddress
    channel: grpc.Channel
    # It holds the newest weights and takes calls.
    ready: bool = False
    # Why not, for a person; empty while that is unknown or being changed.
    problem: str = ""
    info: types_pb2.ModelInfo | None = None
    # It has so many ranks in a NCCL group; 0 where it has no GPU.
    nccl_ranks: int = 0
    # It asked not to be called before this time (monotonic).
    paused_until: float = 0.0
    # It was looked at: it is usable, or ``problem`` says why not.
    tried: bool = False
    # Failed looks since the last one that went well, and failed calls since the last one that did.
    failed_looks: int = 0
    failed_calls: int = 0
    # Control port of the replica that is to pass the newest weights on to it; empty = the worker sends them itself.
    relay: str = ""
    # This run has sent it weights, so that weights of others on it are an intrusion.
    ours: bool = False
    gone: bool = False
    wake: threading.Event = field(default_factory=threading.Event)

    def weight_version(self, service: str) -> weights_pb2.GetWeightVersionResponse:
        """What it serves and keeps. Raises ``ServiceError``, which names it as a replica of ``service``."""
        with explained(f"{service} weight", self.address.control), connect(self.address.control) as channel:
            stub = weights_pb2_grpc.WeightServiceStub(channel)
            return stub.GetWeightVersion(weights_pb2.GetWeightVersionRequest(), timeout=QUICK)

    def require_serving(self, service: str, health_name: str) -> None:
        """Raise ``ServiceError`` unless the gRPC service ``health_name`` is SERVING there."""
        # A fresh channel: a used one waits longer and longer before it looks for a server again.
        with explained(service, self.address.main), connect(self.address.main) as channel:
            request = health_pb2.HealthCheckRequest(service=health_name)
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=QUICK).status
        if status != health_pb2.HealthCheckResponse.SERVING:
            raise ServiceError(service, self.address.main, grpc.StatusCode.UNAVAILABLE, "it is not serving yet")

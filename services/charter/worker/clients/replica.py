"""One replica of a service, as the worker sees it."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from charter.rpc.channel import QUICK, connect
from charter.rpc.discovery import ReplicaAddress
from charter.rpc.errors import ServiceError, explained
from charter.v1 import types_pb2, weights_pb2, weights_pb2_grpc

T = TypeVar("T")


class State(Enum):
    """What a replica is good for at the moment."""

    # It was not looked at yet.
    UNTRIED = auto()
    # It answers, and waits for weights or is being brought to the newest.
    UPDATING = auto()
    # It holds the newest weights and takes calls.
    READY = auto()
    # ``Replica.problem`` says why it cannot be used.
    OUT = auto()


@dataclass(eq=False)
class Replica:
    """One replica. Everything is guarded by the condition of its ``Replicas``."""

    address: ReplicaAddress
    channel: grpc.Channel
    state: State = State.UNTRIED
    # Why it is OUT, for a person.
    problem: str = ""
    info: types_pb2.ModelInfo | None = None
    # It has so many ranks in a NCCL group; 0 where it has no GPU.
    nccl_ranks: int = 0
    # It asked not to be called before this time (monotonic).
    paused_until: float = 0.0
    # Failed looks since the last one that went well, and failed calls since the last one that did.
    failed_looks: int = 0
    failed_calls: int = 0
    # Control port of the replica that is to pass the newest weights on to it; empty = the worker sends them itself.
    relay: str = ""
    # This run has sent it weights, so that weights of others on it are an intrusion.
    ours: bool = False
    wake: threading.Event = field(default_factory=threading.Event)

    @property
    def ready(self) -> bool:
        """Whether it takes calls."""
        return self.state is State.READY

    def put_out(self, problem: str) -> None:
        """It cannot be used."""
        self.state, self.problem = State.OUT, problem

    def begin_update(self) -> None:
        """It is being brought to other weights; one that was never looked at stays so until that has gone well."""
        self.problem = ""
        if self.state is not State.UNTRIED:
            self.state = State.UPDATING

    def found_well(self, *, newest: bool) -> None:
        """It answers; with ``newest`` it holds what it should, and takes calls."""
        self.state, self.problem = State.READY if newest else State.UPDATING, ""
        self.failed_looks = 0

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


def ask_all(
    replicas: Sequence[Replica], ask: Callable[[Replica], T]
) -> tuple[list[T], list[tuple[Replica, ServiceError]]]:
    """Ask all at the same time: the answers, and who failed how."""
    answers: list[T] = []
    failed: list[tuple[Replica, ServiceError]] = []
    with ThreadPoolExecutor(max_workers=max(1, len(replicas))) as threads:
        asked = [(replica, threads.submit(copy_context().run, ask, replica)) for replica in replicas]
        for replica, future in asked:
            try:
                answers.append(future.result())
            except ServiceError as error:
                failed.append((replica, error))
    return answers, failed

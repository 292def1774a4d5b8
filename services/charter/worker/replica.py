"""One replica of a service, as the worker sees it."""

import threading
from dataclasses import dataclass, field

import grpc

from charter.rpc.discovery import ReplicaAddress
from charter.v1 import types_pb2


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

"""Builds the policy service."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from charter.inference.load import create_engine
from charter.policy.servicer import MeasuredPolicyServicer
from charter.rpc.gate import Gate
from charter.rpc.lifecycle import Readiness
from charter.v1 import memory_pb2_grpc, policy_pb2_grpc, weights_pb2_grpc
from charter.weights.memory import MemoryServicer
from charter.weights.receiver import WeightServicer


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What the policy service serves."""

    # Hub id or folder.
    model: str
    # Folder for weights on their way in.
    staging: Path
    # transformers, vllm or fake; see charter.inference.load.
    engine: str = "transformers"
    # The engine's own settings, by the names of its constructor.
    engine_settings: dict[str, Any] = field(default_factory=dict)
    # Generate calls under way; more get RESOURCE_EXHAUSTED.
    max_requests: int = 256


class PolicyRoom:
    """The policy service as a ``charter.rpc.lifecycle.Service``."""

    name = "policy"
    health_names = ("charter.v1.PolicyService",)
    control_names = ("charter.v1.WeightService", "charter.v1.MemoryService")

    def __init__(self, config: PolicyConfig) -> None:
        self.engine = create_engine(config.engine, config.model, **config.engine_settings)
        self._staging = config.staging
        self.readiness = Readiness()
        self._gate = Gate()
        self._servicer = MeasuredPolicyServicer(self.engine, config.max_requests, self._gate)

    def register(self, server: grpc.aio.Server) -> None:
        """Add ``PolicyService``."""
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._servicer, server)

    def register_control(self, server: grpc.aio.Server) -> None:
        """Add ``WeightService`` and ``MemoryService``."""
        weights = WeightServicer(self.engine, self._staging, "policy", self.readiness)
        weights_pb2_grpc.add_WeightServiceServicer_to_server(weights, server)
        memory = MemoryServicer(self.engine, self._gate, self.readiness, "policy")
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(memory, server)

    async def start(self) -> None:
        """Load and warm the model. Raises ``OSError`` when it cannot be found."""
        await self.engine.start()
        self._gate.open()

    async def stop(self) -> None:
        """Free the model."""
        await self.engine.stop()


def build(config: PolicyConfig) -> PolicyRoom:
    """Put the service together; nothing is loaded yet. Raises ``ValueError`` for an engine that does not exist."""
    return PolicyRoom(config)

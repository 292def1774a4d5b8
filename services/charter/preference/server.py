"""Builds the preference service."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from charter.preference.models import PreferenceModels
from charter.preference.servicer import PreferenceServicer
from charter.preference.store import ComparisonStore
from charter.preference.tables import SCHEMA
from charter.rpc.gate import Gate
from charter.rpc.lifecycle import Readiness
from charter.storage.database import open_database
from charter.v1 import memory_pb2_grpc, preference_pb2_grpc, weights_pb2_grpc
from charter.weights.memory import MemoryServicer
from charter.weights.receiver import WeightServicer


@dataclass(frozen=True, slots=True)
class PreferenceConfig:
    """What the preference service serves, and where it keeps what."""

    # By name. The first: a causal language model (hub id or folder) whose fitted weights will be sent, or a
    # preference_model folder. The others: preference_model folders.
    models: Mapping[str, str]
    # SQLAlchemy URL: sqlite:///FILE or postgresql://...
    database: str
    # Folder for weights on their way in.
    staging: Path
    # Whether it brings its tables to the newest version itself, or waits until they are.
    migrate: bool = True


class PreferenceRoom:
    """The preference service as a ``charter.rpc.lifecycle.Service``."""

    name = "preference"
    health_names = ("charter.v1.PreferenceService",)
    control_names = ("charter.v1.WeightService", "charter.v1.MemoryService")

    def __init__(self, config: PreferenceConfig) -> None:
        self._models = PreferenceModels(config.models)
        # Opened before anything is served, so that a wrong URL fails at once.
        self._database = open_database(config.database, SCHEMA, config.migrate)
        self._staging = config.staging
        self._gate = Gate("the preference model")
        self.readiness = Readiness()

    def register(self, server: grpc.aio.Server) -> None:
        """Add ``PreferenceService``."""
        servicer = PreferenceServicer(ComparisonStore(self._database), self._models, self._gate)
        preference_pb2_grpc.add_PreferenceServiceServicer_to_server(servicer, server)

    def register_control(self, server: grpc.aio.Server) -> None:
        """Add ``WeightService`` and ``MemoryService``."""
        weights = WeightServicer(self._models.first, self._staging, "preference")
        weights_pb2_grpc.add_WeightServiceServicer_to_server(weights, server)
        memory = MemoryServicer(self._models, self._gate, self.readiness, "preference")
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(memory, server)

    async def start(self) -> None:
        """Load the models."""
        await self._models.start()
        self._gate.open()

    async def stop(self) -> None:
        """Free the models and close the database."""
        await self._models.stop()
        await asyncio.to_thread(self._database.dispose)


def build(config: PreferenceConfig) -> PreferenceRoom:
    """Open the database and put the service together.

    Raises ``charter.storage.database.DatabaseError``, and ``ValueError`` as ``PreferenceModels``.
    """
    return PreferenceRoom(config)

"""Builds the trainer service."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc

from charter.storage.database import open_database
from charter.trainer.launcher import Launcher
from charter.trainer.runs import RunStore
from charter.trainer.servicer import RunReportServicer, TrainerServicer
from charter.trainer.supervisor import Supervisor
from charter.trainer.tables import SCHEMA
from charter.v1 import run_pb2, trainer_pb2_grpc


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """Where the trainer keeps what, and where its workers reach it."""

    # SQLAlchemy URL: sqlite:///FILE or postgresql://...
    database: str
    # Folder of the runs' artifacts.
    artifacts: Path
    # Control address that workers report to, host:port.
    control_address: str
    launcher: Launcher
    # Where the services are, for the addresses that a spec leaves out.
    services: run_pb2.ServiceAddresses
    # Whether it brings its tables to the newest version itself, or waits until they are.
    migrate: bool = True


class TrainerRoom:
    """The trainer as a ``charter.rpc.lifecycle.Service``."""

    name = "trainer"
    health_names = ("charter.v1.TrainerService",)
    control_names = ("charter.v1.RunReportService",)

    def __init__(self, config: TrainerConfig) -> None:
        # Opened before anything is served, so that a wrong URL fails at once.
        self._database = open_database(config.database, SCHEMA, config.migrate)
        artifacts = config.artifacts.resolve()
        self._store = RunStore(self._database, artifacts)
        self._store.adopt()
        self.supervisor = Supervisor(self._store, config.launcher, artifacts, config.control_address, config.services)

    def register(self, server: grpc.aio.Server) -> None:
        """Add ``TrainerService``."""
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(TrainerServicer(self._store, self.supervisor), server)

    def register_control(self, server: grpc.aio.Server) -> None:
        """Add ``RunReportService``."""
        trainer_pb2_grpc.add_RunReportServiceServicer_to_server(RunReportServicer(self.supervisor), server)

    async def start(self) -> None:
        """Take up the runs that an earlier trainer left."""
        await self.supervisor.recover()

    def end_streams(self) -> None:
        """End every ``WatchRun``."""
        self.supervisor.end_watches()

    async def stop(self) -> None:
        """Let go of the runs; their workers live on."""
        await self.supervisor.close()
        await asyncio.to_thread(self._database.dispose)


def build(config: TrainerConfig) -> TrainerRoom:
    """Open the database and put the service together. Raises ``charter.storage.database.DatabaseError``."""
    return TrainerRoom(config)

"""Runs a real service in a thread, on free ports, for tests."""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from charter.rpc.channel import QUICK, connect
from charter.rpc.lifecycle import Addresses, Listen, Service, serving
from charter.trainer.server import TrainerRoom
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_SECONDS = 120.0
SERVICES = Path(__file__).resolve().parents[2] / "services"


@contextmanager
def running(service: Service) -> Iterator[Addresses]:
    """Serve on free ports inside the block; calls under way have a second to end after it."""
    ready = threading.Event()
    result: list[Addresses | BaseException] = []
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def main() -> None:
        async with serving(
            service, Listen(port=0, control_port=0, metrics_port=0, health_port=0), drain_seconds=1.0
        ) as addresses:
            result.append(addresses)
            ready.set()
            await stopping.wait()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(main())
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            result.append(error)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run, name=f"test-{service.name}")
    thread.start()
    try:
        if not ready.wait(START_SECONDS):
            raise TimeoutError(f"{service.name} did not start in {START_SECONDS:.0f} s")
        if isinstance(result[0], BaseException):
            raise result[0]
        yield result[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)
        thread.join(30)
        if thread.is_alive():
            raise TimeoutError(f"{service.name} did not stop")
    for late in result[1:]:
        if isinstance(late, BaseException):
            raise late


@contextmanager
def running_for_commands(home: Path, rooms: Iterable[Service]) -> Iterator[None]:
    """Serve all of them; commands, and workers of the trainer, find them and ``home`` through the environment."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("CHARTER_HOME", str(home))
        patch.setenv("PYTHONPATH", str(SERVICES))
        for room in rooms:
            addresses, name = stack.enter_context(running(room)), room.name
            patch.setenv(f"CHARTER_{name.upper()}_ADDRESS", addresses.main)
            patch.setenv(f"CHARTER_{name.upper()}_CONTROL_ADDRESS", addresses.control)
            if isinstance(room, TrainerRoom):
                room.supervisor.control_address = addresses.control
        yield


def health(address: str, service: str) -> int:
    """What the health service at an address says of one of its services: a ``ServingStatus``."""
    with connect(address) as channel:
        check = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(check, timeout=QUICK).status)

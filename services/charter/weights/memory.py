"""MemoryService: lends the GPU memory of what serves to a worker that shares its GPU."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Protocol

import grpc
from prometheus_client import Gauge

from charter.inference.engine import CannotSleepError
from charter.rpc.errors import StatusError
from charter.rpc.gate import Gate
from charter.rpc.lifecycle import Readiness
from charter.v1 import memory_pb2, memory_pb2_grpc

logger = logging.getLogger("charter.weights")

ASLEEP = Gauge("charter_asleep", "1 while a worker has the service's GPU memory, else 0.", ["service"])


class Sleeper(Protocol):
    """What has the memory: an engine, or the preference scorer."""

    async def sleep(self) -> None:
        """Free it; no call is under way. Raises ``CannotSleepError`` when it was not started for that."""

    async def wake(self) -> None:
        """Take it back."""


class MemoryServicer(memory_pb2_grpc.MemoryServiceServicer):
    """Each RPC by its contract in ``memory.proto``. ``gate`` is passed by every call that needs the model."""

    def __init__(self, sleeper: Sleeper, gate: Gate, readiness: Readiness, service: str) -> None:
        self._sleeper = sleeper
        self._gate = gate
        self._readiness = readiness
        self._turn = asyncio.Lock()
        self._asleep = False
        self._metric = ASLEEP.labels(service)
        self._metric.set(0)

    async def Sleep(
        self, request: memory_pb2.SleepRequest, context: grpc.aio.ServicerContext
    ) -> memory_pb2.SleepResponse:
        """Drain, then free the memory."""
        async with self._turn:
            if self._asleep:
                return memory_pb2.SleepResponse()
            start = time.monotonic()
            await self._gate.shut()
            drained = time.monotonic()
            await _whole(self._fall_asleep())
        return memory_pb2.SleepResponse(drain_seconds=drained - start, sleep_seconds=time.monotonic() - drained)

    async def Wake(self, request: memory_pb2.WakeRequest, context: grpc.aio.ServicerContext) -> memory_pb2.WakeResponse:
        """Take the memory back."""
        async with self._turn:
            start = time.monotonic()
            if self._asleep:
                await _whole(self._wake_up())
            self._gate.require_open()
        return memory_pb2.WakeResponse(wake_seconds=time.monotonic() - start)

    async def _fall_asleep(self) -> None:
        await self._readiness.hold()
        try:
            await self._sleeper.sleep()
        except BaseException as error:
            self._gate.open()
            await self._readiness.release()
            if isinstance(error, CannotSleepError):
                raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error
            raise
        self._asleep = True
        self._metric.set(1)
        logger.info("sleeping: a worker has the GPU")

    async def _wake_up(self) -> None:
        await self._sleeper.wake()
        self._asleep = False
        self._metric.set(0)
        self._gate.open()
        await self._readiness.release()
        logger.info("awake")


async def _whole(change: Coroutine[Any, Any, None]) -> None:
    """Carry a change through, also when the caller goes away in the middle of it."""
    task = asyncio.create_task(change)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise

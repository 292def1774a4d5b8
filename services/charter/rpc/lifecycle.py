"""The life of a service process: bind, load, serve, drain, stop, in this order."""

import asyncio
import contextlib
import importlib.metadata
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from wsgiref.simple_server import WSGIServer

import grpc
import prometheus_client
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from charter.rpc import metrics
from charter.rpc.channel import KEEPALIVE_SECONDS, MESSAGE_OPTIONS
from charter.rpc.interceptors import CallInterceptor
from charter.rpc.tls import server_credentials

logger = logging.getLogger("charter.rpc")

# Seconds that calls under way have after SIGTERM. In a cluster, with ENDPOINT_SECONDS, this stays below
# terminationGracePeriodSeconds.
DRAIN_SECONDS = 30.0
# Seconds between NOT_SERVING and refusing calls, for load balancers to notice.
ENDPOINT_SECONDS = 0.5

_SERVER_OPTIONS = [
    *MESSAGE_OPTIONS,
    # Two servers on one port would share its calls unnoticed.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
    ("grpc.keepalive_permit_without_calls", 1),
]


class PortTakenError(OSError):
    """A port that the service needs is taken."""


class Service(Protocol):
    """What a room's ``server.py`` builds."""

    @property
    def name(self) -> str:
        """Short name: policy, judge, preference or trainer."""

    @property
    def health_names(self) -> tuple[str, ...]:
        """gRPC services on the main port; readiness is reported under these names."""

    @property
    def control_names(self) -> tuple[str, ...]:
        """gRPC services on the control port; empty when there is none."""

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicers of the main port."""

    def register_control(self, server: grpc.aio.Server) -> None:
        """Add the servicers of the control port."""

    async def start(self) -> None:
        """Load and warm. The service is SERVING only after this returns."""

    async def stop(self) -> None:
        """Free everything. Called once, after the last call has ended."""


class Readiness:
    """Lets a service that is up say NOT_SERVING for a while; it has no effect before the service serves."""

    def __init__(self) -> None:
        self._announce: Callable[[bool], Awaitable[None]] | None = None
        self._reasons = 0

    def bind(self, announce: Callable[[bool], Awaitable[None]]) -> None:
        """``announce`` tells the health service whether this one serves."""
        self._announce = announce

    @contextlib.asynccontextmanager
    async def held_back(self) -> AsyncIterator[None]:
        """NOT_SERVING inside the block."""
        await self.hold()
        try:
            yield
        finally:
            await self.release()

    async def hold(self) -> None:
        """NOT_SERVING until as many calls of ``release``."""
        self._reasons += 1
        if self._announce is not None:
            await self._announce(False)

    async def release(self) -> None:
        """SERVING again, unless something else holds it back."""
        self._reasons -= 1
        if self._announce is not None and self._reasons == 0:
            await self._announce(True)


@runtime_checkable
class HasReadiness(Protocol):
    """A service that decides itself when it is ready, once it is up."""

    @property
    def readiness(self) -> Readiness:
        """What it says so with."""


@runtime_checkable
class HasEndlessStreams(Protocol):
    """A service with streams that end when something happens; left alone they would hold the drain to its limit."""

    def end_streams(self) -> None:
        """End them, and all later ones, with a status that clients retry. Called before the servers stop."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a service listens. Port 0 takes a free one; None leaves it out.

    The health port serves health alone and without TLS, for the kubelet, whose probes speak no TLS.
    """

    host: str = "127.0.0.1"
    port: int = 0
    control_port: int | None = None
    metrics_port: int | None = None
    health_port: int | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a service came to listen, as host:port; empty when it was left out."""

    main: str
    control: str
    metrics: str
    health: str


@contextlib.asynccontextmanager
async def serving(service: Service, listen: Listen, drain_seconds: float = DRAIN_SECONDS) -> AsyncIterator[Addresses]:
    """Serve inside the block; drain and stop at its end.

    Ports are bound before the model is loaded, so that a taken port fails at once. Raises ``PortTakenError``,
    ``ValueError`` when the certificates cannot be read, and whatever ``service.start`` raises.
    """
    statuses = health.aio.HealthServicer()
    for name in ("", *service.health_names):
        ready = health_pb2.HealthCheckResponse.SERVING if name == "" else health_pb2.HealthCheckResponse.NOT_SERVING
        await statuses.set(name, ready)
    _preregister(service)
    metrics_server, metrics_address = _start_metrics(listen)
    servers: list[grpc.aio.Server] = []
    try:
        main, main_address = _bind(listen.host, listen.port, service.health_names, statuses)
        service.register(main)
        servers.append(main)
        control_address = ""
        if listen.control_port is not None and service.control_names:
            control, control_address = _bind(listen.host, listen.control_port, service.control_names, statuses)
            service.register_control(control)
            servers.append(control)
        health_address = ""
        if listen.health_port is not None:
            health_server, health_address = _bind(listen.host, listen.health_port, (), statuses, encrypted=False)
            servers.append(health_server)
        # Health answers NOT_SERVING while the model loads.
        for server in servers:
            await server.start()
        await service.start()

        async def announce(ready: bool) -> None:
            status = health_pb2.HealthCheckResponse
            for name in service.health_names:
                await statuses.set(name, status.SERVING if ready else status.NOT_SERVING)
            metrics.SERVING.labels(service.name).set(ready)

        await announce(True)
        if isinstance(service, HasReadiness):
            service.readiness.bind(announce)
        logger.info("serving", extra={"address": main_address, "control": control_address, "metrics": metrics_address})
        yield Addresses(main_address, control_address, metrics_address, health_address)
        logger.info("draining", extra={"seconds": drain_seconds})
        metrics.SERVING.labels(service.name).set(0)
        await statuses.enter_graceful_shutdown()
        await asyncio.sleep(ENDPOINT_SECONDS)
    finally:
        if isinstance(service, HasEndlessStreams):
            service.end_streams()
        await asyncio.gather(*(server.stop(drain_seconds) for server in servers))
        await service.stop()
        if metrics_server is not None:
            metrics_server.shutdown()
            metrics_server.server_close()
    logger.info("stopped")


async def serve(service: Service, listen: Listen) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal does not wait."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    task = asyncio.current_task()

    def on_signal() -> None:
        if stopping.is_set() and task is not None:
            task.cancel()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loading = asyncio.create_task(_serve_until(service, listen, stopping))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({loading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        await loading
    finally:
        waiting.cancel()
        loading.cancel()


async def _serve_until(service: Service, listen: Listen, stopping: asyncio.Event) -> None:
    async with serving(service, listen):
        await stopping.wait()


def _bind(
    host: str, port: int, names: tuple[str, ...], statuses: health.aio.HealthServicer, encrypted: bool = True
) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(interceptors=[CallInterceptor()], options=_SERVER_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    credentials = server_credentials() if encrypted else None
    try:
        if credentials:
            bound = server.add_secure_port(f"{host}:{port}", credentials)
        else:
            bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise PortTakenError(
            f"cannot listen on {host}:{port}: it is taken, or not an address of this machine. "
            f"Stop what listens there (`charter status`, `ss -ltnp`) or choose another port."
        ) from error
    return server, f"{host}:{bound}"


def _start_metrics(listen: Listen) -> tuple[WSGIServer | None, str]:
    if listen.metrics_port is None:
        return None, ""
    try:
        server, _ = prometheus_client.start_http_server(listen.metrics_port, addr=listen.host)
    except OSError as error:
        raise PortTakenError(
            f"cannot serve metrics on {listen.host}:{listen.metrics_port}: {error.strerror}. "
            f"Stop what listens there or choose another --metrics-port."
        ) from error
    return server, f"{listen.host}:{server.server_port}"


def _preregister(service: Service) -> None:
    """Every method's counters exist from the start, at zero, so that rates and alerts have a base."""
    pool = descriptor_pool.Default()
    for name in (*service.health_names, *service.control_names):
        for method in pool.FindServiceByName(name).methods:
            labels = (_kind(method), name, method.name)
            metrics.STARTED.labels(*labels)
            metrics.HANDLED.labels(*labels, "OK")
            metrics.FAILED.labels(name, method.name)
            metrics.HANDLING_SECONDS.labels(*labels)
    metrics.SERVING.labels(service.name).set(0)
    metrics.BUILD.labels(importlib.metadata.version("charter")).set(1)


def _kind(method: MethodDescriptor) -> str:
    if method.client_streaming:
        return "bidi_stream" if method.server_streaming else "client_stream"
    return "server_stream" if method.server_streaming else "unary"

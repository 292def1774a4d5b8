"""Client channels: keepalive, message limits, and retries of idempotent calls, all in one place."""

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from charter.rpc.tls import client_credentials

# Deadlines in seconds: every call passes one of them as `timeout`.
QUICK = 10.0
BATCH = 1800.0

# Texts are bounded at 400,000 characters a field; a full batch of long answers fits well below this.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# Client and server must agree: a server answers pings more frequent than it permits with GOAWAY.
KEEPALIVE_SECONDS = 60
KEEPALIVE_TIMEOUT_SECONDS = 20

# Idempotent by their contracts. Generate is left out: it draws random numbers.
_RETRIED = [
    {"service": f"charter.v1.{name}"}
    for name in ("JudgeService", "PreferenceService", "TrainerService", "RunReportService")
] + [{"service": "charter.v1.PolicyService", "method": method} for method in ("GetModelInfo", "Score")]

_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": _RETRIED,
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 2.5,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)

MESSAGE_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]


_OPTIONS = [
    *MESSAGE_OPTIONS,
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.service_config", _SERVICE_CONFIG),
    # Loopback and cluster addresses never go through a web proxy.
    ("grpc.enable_http_proxy", 0),
]


def connect(address: str) -> grpc.Channel:
    """A channel to ``host:port``, with mutual TLS where it is on. The caller closes it.

    Connecting happens with the first call. Unary calls are retried while the service is UNAVAILABLE, calls that stream
    end with that status at once. Raises ``ValueError`` when the certificates cannot be read.
    """
    # Here, not at the top: who only asks a command for help waits for neither metrics nor traces.
    from charter.rpc.client_calls import ClientCalls

    return grpc.intercept_channel(_Channel(address), ClientCalls())


def connect_async(address: str) -> grpc.aio.Channel:
    """As ``connect``, for an event loop; here calls that stream are retried too, until their first response."""
    if credentials := client_credentials():
        return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


class _Channel(grpc.Channel):
    """Two connections, each made when it is needed: unary calls are retried, calls that stream are not.

    In grpcio 1.85 a call that streams its responses never ends when its connection breaks before the first of them and
    the next attempt finds no server: its deadline and ``cancel`` do nothing. gRPC itself attempts a call again that no
    server has seen, as in a rolling update, so it takes more than a policy without retries to be safe of it.
    """

    def __init__(self, address: str) -> None:
        self._unary = _open(address, _OPTIONS)
        self._streams = _open(address, [*_OPTIONS, ("grpc.enable_retries", 0)])

    def unary_unary(self, *arguments: Any, **options: Any) -> grpc.UnaryUnaryMultiCallable:
        """As ``grpc.Channel``."""
        return self._unary.unary_unary(*arguments, **options)

    def unary_stream(self, *arguments: Any, **options: Any) -> grpc.UnaryStreamMultiCallable:
        """As ``grpc.Channel``."""
        return self._streams.unary_stream(*arguments, **options)

    def stream_unary(self, *arguments: Any, **options: Any) -> grpc.StreamUnaryMultiCallable:
        """As ``grpc.Channel``."""
        return self._streams.stream_unary(*arguments, **options)

    def stream_stream(self, *arguments: Any, **options: Any) -> grpc.StreamStreamMultiCallable:
        """As ``grpc.Channel``."""
        return self._streams.stream_stream(*arguments, **options)

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """As ``grpc.Channel``, of the connection for unary calls."""
        self._unary.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """As ``grpc.Channel``."""
        self._unary.unsubscribe(callback)

    def close(self) -> None:
        """Close both connections; calls under way end."""
        self._unary.close()
        self._streams.close()

    def __enter__(self) -> "_Channel":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both connections."""
        self.close()


def _open(address: str, options: list[tuple[str, Any]]) -> grpc.Channel:
    if credentials := client_credentials():
        return grpc.secure_channel(address, credentials, options=options)
    return grpc.insecure_channel(address, options=options)

"""The one client interceptor: metrics, trace, and the run that a call belongs to."""

import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from charter.rpc import metrics, tracing
from charter.rpc.logs import call_metadata


class _Details(NamedTuple):
    """The call's details with other metadata."""

    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class ClientCalls(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Counts each call of Charter's services from its start to its end."""

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """One message each way."""
        return _call("unary", continuation, details, request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Answers as they come."""
        return _call("server_stream", continuation, details, request)

    def intercept_stream_unary(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        """Weights in chunks."""
        return _call("client_stream", continuation, details, requests)

    def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        """Talk back and forth."""
        return _call("bidi_stream", continuation, details, requests)


def _call(kind: str, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
    rpc = details.method.lstrip("/")
    service, _, method = rpc.partition("/")
    if not service.startswith("charter."):
        return continuation(details, request)
    labels = (kind, service, method)
    metadata = call_metadata()
    span = tracing.start_client_call(rpc, metadata)
    start = time.monotonic()
    metrics.CLIENT_STARTED.labels(*labels).inc()

    def ended(code: grpc.StatusCode) -> None:
        metrics.CLIENT_HANDLING_SECONDS.labels(*labels).observe(time.monotonic() - start, tracing.exemplar(span))
        metrics.CLIENT_HANDLED.labels(*labels, metrics.code_name(code)).inc()
        tracing.end_call(span, code)

    sent = _Details(
        details.method,
        details.timeout,
        [*(details.metadata or ()), *metadata.items()],
        details.credentials,
        details.wait_for_ready,
        details.compression,
    )
    call = continuation(sent, request)
    if kind in ("server_stream", "bidi_stream"):
        _when_ended(call, ended)
    else:
        call.add_done_callback(lambda done: ended(done.code()))
    return call


def _when_ended(stream: Any, ended: Callable[[grpc.StatusCode], None]) -> None:
    """Call ``ended`` once. The stream is held weakly: one that its reader drops must be collected, which cancels it."""
    alive = weakref.ref(stream)

    def on_end() -> None:
        found = alive()
        ended(grpc.StatusCode.CANCELLED if found is None else found.code())

    if not stream.add_callback(on_end):
        on_end()

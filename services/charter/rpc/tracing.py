"""Traces by OpenTelemetry: off unless the standard OTEL_* variables ask for them.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_TRACES_EXPORTER=otlp`) turns them on; sampling, headers, resource attributes and
the rest are the SDK's own variables.
"""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import grpc
from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from charter.environment import EnvironmentVariableError

_tracer = trace.get_tracer("charter")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def configure_tracing(service: str) -> None:
    """Send this process's spans by OTLP, if the environment says so.

    Raises ``EnvironmentVariableError`` for an exporter or protocol that is not there.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp" if any(map(os.environ.get, _ENDPOINTS)) else "none")
    if exporter == "none":
        return
    if exporter != "otlp":
        raise EnvironmentVariableError(
            f"OTEL_TRACES_EXPORTER is {exporter}; Charter exports traces by otlp, or not at all (none)"
        )
    # Only here, because they take half a second that a process without traces need not spend.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    spans: SpanExporter
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        spans = GrpcExporter()
    elif protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        spans = HttpExporter()
    else:
        raise EnvironmentVariableError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}; there are grpc and http/protobuf")
    name = os.environ.get("OTEL_SERVICE_NAME") or f"charter-{service}"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(spans))
    trace.set_tracer_provider(provider)


@contextmanager
def traced(name: str, **attributes: str | int) -> Iterator[None]:
    """A span of this process around the block; what the block raises ends it as an error."""
    with _tracer.start_as_current_span(name, attributes=attributes):
        yield


def start_trace(name: str, **attributes: str | int) -> Span:
    """The first span of a new trace, for ``working_in`` and whoever ends it."""
    return _tracer.start_span(name, context=context.Context(), attributes=attributes)


@contextmanager
def working_in(span: Span) -> Iterator[None]:
    """Make a span the present one for the block, and leave it open; what the block raises marks it as an error."""
    with trace.use_span(span):
        yield


def start_client_call(rpc: str, metadata: MutableMapping[str, str]) -> Span:
    """The span of a call that this process makes; ``metadata`` gets what the server needs to continue the trace."""
    span = _tracer.start_span(rpc, kind=SpanKind.CLIENT, attributes=_attributes(rpc))
    propagate.inject(metadata, context=trace.set_span_in_context(span))
    return span


def start_server_call(rpc: str, metadata: MutableMapping[str, str]) -> Span:
    """The span of a call that this process serves, current until the call's task ends."""
    span = _tracer.start_span(
        rpc, context=propagate.extract(metadata), kind=SpanKind.SERVER, attributes=_attributes(rpc)
    )
    # Never detached: each call is a task with a context of its own.
    context.attach(trace.set_span_in_context(span))
    return span


def end_call(span: Span, code: grpc.StatusCode) -> None:
    """End a call's span with its status code. A call that its caller broke off is no error."""
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
        span.set_status(Status(StatusCode.ERROR, code.name))
    span.end()


def exemplar(span: Span | None = None) -> dict[str, str] | None:
    """The span's trace (the present one's by default), as an observation links to it; None when it is not recorded."""
    found = (span or trace.get_current_span()).get_span_context()
    return {"trace_id": trace.format_trace_id(found.trace_id)} if found.trace_flags.sampled else None


def log_fields() -> dict[str, str]:
    """Trace and span of a log line; empty outside a trace."""
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}


def _attributes(rpc: str) -> dict[str, str]:
    service, _, method = rpc.partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}

"""gRPC metrics of both sides of a call by the names of go-grpc-middleware, and what every page says of its process."""

import grpc
import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


def code_name(code: grpc.StatusCode) -> str:
    """DEADLINE_EXCEEDED as DeadlineExceeded, the way go-grpc-middleware labels it; OK stays OK."""
    return "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")


# Codes by which a service fails through a fault of its own. A caller's mistakes and cancellations are not among them.
_OWN_FAULT = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
)
# From a look-up to a stream that lasts as long as its slowest answer.
_CALL_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

STARTED = Counter(
    "grpc_server_started_total",
    "RPCs started on the server.",
    ["grpc_type", "grpc_service", "grpc_method"],
)
HANDLED = Counter(
    "grpc_server_handled_total",
    "RPCs completed on the server, by status code.",
    ["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
)
HANDLING_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Seconds from the start of an RPC to its end, streams included.",
    ["grpc_type", "grpc_service", "grpc_method"],
    buckets=_CALL_SECONDS,
)
FAILED = Counter(
    "charter_calls_failed_total",
    f"RPCs that failed by the service's own fault ({', '.join(map(code_name, _OWN_FAULT))}).",
    ["grpc_service", "grpc_method"],
)
CLIENT_STARTED = Counter(
    "grpc_client_started_total",
    "RPCs started by this process as a client.",
    ["grpc_type", "grpc_service", "grpc_method"],
)
CLIENT_HANDLED = Counter(
    "grpc_client_handled_total",
    "RPCs of this process that have ended, by status code, retries of the channel not counted.",
    ["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
)
CLIENT_HANDLING_SECONDS = Histogram(
    "grpc_client_handling_seconds",
    "Seconds from the start of an RPC of this process to its end, streams included.",
    ["grpc_type", "grpc_service", "grpc_method"],
    buckets=_CALL_SECONDS,
)
SERVING = Gauge("charter_serving", "1 when the service is ready for calls, else 0.", ["service"])
BUILD = Gauge("charter_build_info", "1, with the version of Charter that serves this page.", ["version"])


def count_handled(kind: str, service: str, method: str, code: grpc.StatusCode) -> None:
    """Count a call that this process served, and whether it failed by its own fault."""
    HANDLED.labels(kind, service, method, code_name(code)).inc()
    if code in _OWN_FAULT:
        FAILED.labels(service, method).inc()

"""What the gateway reports to Prometheus."""

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

# When a series was first counted interests nobody, and doubles the page (charter.rpc.metrics does the same).
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

REQUESTS = Counter(
    "charter_gateway_requests_total",
    "HTTP requests answered, by path and status; 499 where the client hung up first.",
    ["path", "status"],
)
BROKEN_STREAMS = Counter("charter_gateway_broken_streams_total", "Streams that ended with an error after their start.")
UNDER_WAY = Gauge("charter_gateway_open_requests", "HTTP requests under way.")
SECONDS = Histogram(
    "charter_gateway_request_seconds",
    "Seconds from an HTTP request to the end of its answer.",
    ["path"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
FIRST_TEXT_SECONDS = Histogram(
    "charter_gateway_first_text_seconds",
    "Seconds from the request for a stream to the first of its answer.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160),
)
TOKENS = Counter("charter_gateway_tokens_total", "Tokens that clients were told of (prompt, completion).", ["kind"])
for _kind in ("prompt", "completion"):
    TOKENS.labels(_kind)

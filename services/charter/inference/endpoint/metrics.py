"""Prometheus metrics of calls to an OpenAI-compatible endpoint."""

from prometheus_client import Counter, Gauge

REQUESTS = Counter(
    "charter_endpoint_requests_total",
    "HTTP requests to the endpoint, by result: answered, limited (429), failed (5xx or no connection), refused.",
    ["result"],
)
CIRCUIT_OPEN = Gauge("charter_endpoint_circuit_open", "1 while calls are refused because the endpoint is down.")
BUDGET_TOKENS = Gauge(
    "charter_endpoint_budget_tokens", "Tokens that may still be spent; absent without a budget.", ["model"]
)

for _result in ("answered", "limited", "failed", "refused"):
    REQUESTS.labels(_result)

"""Client channels: keepalive, message limits, and retries of idempotent calls, all in one place."""

import json

import grpc

# Deadlines in seconds: every call passes one of them as `timeout`.
QUICK = 10.0
BATCH = 1800.0

# Texts are bounded at 400,000 characters a field; a full batch of long answers fits well below this.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# Client and server must agree: a server answers pings more frequent than it permits with GOAWAY.
KEEPALIVE_SECONDS = 60
KEEPALIVE_TIMEOUT_SECONDS = 20

# Generate is left out: it draws random numbers. ReportEvents and the rest are idempotent by their contracts.
_NOT_RETRIED = [{"service": "charter.v1.PolicyService", "method": "Generate"}]
_RETRIED = [
    {"service": f"charter.v1.{name}"}
    for name in ("JudgeService", "PreferenceService", "TrainerService", "RunReportService")
] + [{"service": "charter.v1.PolicyService", "method": "GetModelInfo"}]

_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {"name": _NOT_RETRIED, "waitForReady": False},
            {
                "name": _RETRIED,
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 2.5,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
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
    """A channel to ``host:port``. The caller closes it. Connecting happens with the first call."""
    return grpc.insecure_channel(address, options=_OPTIONS)


def connect_async(address: str) -> grpc.aio.Channel:
    """As ``connect``, for an event loop."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)

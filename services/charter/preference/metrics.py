"""Prometheus metrics of the preference service. The served weight version is in ``charter.weights.receiver``."""

from prometheus_client import Counter, Gauge, Histogram

from charter.storage.comparisons import enum_name
from charter.v1 import types_pb2

ADDED = Counter("charter_comparisons_added_total", "Comparisons stored.", ["outcome", "source"])
DUPLICATES = Counter("charter_comparisons_duplicates_total", "Comparisons that were stored already.")
# `model` is the name that a model was loaded under: as many values as the service was started with.
SCORES = Counter("charter_preference_scores_total", "Answers scored.", ["model"])
TOKENS = Counter("charter_preference_tokens_total", "Tokens scored.", ["model"])
SHARED = Counter(
    "charter_preference_shared_tokens_total", "Of these, computed once for several answers: not again.", ["model"]
)
WAITING = Gauge("charter_preference_waiting_answers", "Answers that wait to be scored.", ["model"])
WAITING_LIMIT = Gauge(
    "charter_preference_waiting_answers_limit", "Waiting answers at which more are refused.", ["model"]
)
WAIT_SECONDS = Histogram(
    "charter_preference_wait_seconds",
    "Seconds that an answer waits before its batch is computed.",
    ["model"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
BATCH_ANSWERS = Histogram(
    "charter_preference_batch_answers",
    "Answers in a forward pass.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
BATCH_SECONDS = Histogram(
    "charter_preference_batch_seconds",
    "Seconds of a forward pass.",
    ["model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)

# Every series exists from the start, at zero, so that rates and alerts have a base.
for _outcome in types_pb2.Outcome.values()[1:]:
    for _source in types_pb2.LabelSource.values()[1:]:
        ADDED.labels(enum_name("outcome", _outcome).lower(), enum_name("source", _source).lower())


def register(model: str) -> None:
    """Let every series of a model exist."""
    for metric in (SCORES, TOKENS, SHARED, WAITING, WAITING_LIMIT, WAIT_SECONDS, BATCH_ANSWERS, BATCH_SECONDS):
        metric.labels(model)

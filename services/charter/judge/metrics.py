"""Prometheus metrics of the judge."""

import math
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from charter.outcomes import same_position_wins
from charter.storage.comparisons import enum_name
from charter.v1 import judge_pb2, types_pb2

JUDGEMENTS = Counter("charter_judge_judgements_total", "Pairs judged, by method and outcome.", ["method", "outcome"])
PRINCIPLE_JUDGEMENTS = Counter(
    "charter_judge_principle_judgements_total",
    "Judgements under one principle, by outcome.",
    ["principle", "outcome"],
)
ORDERED = Counter(
    "charter_judge_ordered_total",
    "Judgements under one principle that showed both orders, by principle.",
    ["principle"],
)
POSITION_BIASED = Counter(
    "charter_judge_position_biased_total",
    "Those of charter_judge_ordered_total in which the same position won twice.",
    ["principle"],
)
LABEL_ENTROPY = Histogram(
    "charter_judge_label_entropy_nats",
    "Entropy of the soft labels: 0 is certain, 0.693 undecided.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.68, 0.69, 0.7),
)
RATINGS = Counter("charter_judge_ratings_total", "Answers rated, by whether there is a rating.", ["rated"])
TEXTS = Counter(
    "charter_judge_texts_total", "Critiques and revisions, by whether they were written.", ["kind", "written"]
)
WAITING = Gauge("charter_judge_waiting_items", "Items of calls under way that have no result yet.")
REQUEST_ITEMS = Histogram(
    "charter_judge_request_items",
    "Items of a call, by RPC.",
    ["rpc"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
RESULT_SECONDS = Histogram(
    "charter_judge_result_seconds",
    "Seconds from the start of a request to a result of it, by RPC.",
    ["rpc"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800),
)
COMPARISON_SECONDS = Histogram(
    "charter_judge_comparison_seconds",
    "Seconds of the model's work for a pair, all principles and orders: those of a call over the pairs in it.",
    ["method"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
TOKENS = Counter("charter_judge_tokens_total", "Tokens that the judge's model read and wrote.", ["kind"])
RELOADS = Counter(
    "charter_judge_constitution_reloads_total", "Changes of the constitution file, by result.", ["result"]
)
CONSTITUTION = Gauge(
    "charter_judge_constitution_info", "1 for the constitution that is judged by.", ["name", "version", "digest"]
)

OUTCOMES = {number: enum_name("outcome", number).lower() for number in types_pb2.Outcome.values()[1:]}


def preregister(methods: Iterable[str], principles: Iterable[str]) -> None:
    """Every series exists from the start, at zero, so that rates and alerts have a base."""
    for principle in principles:
        ORDERED.labels(principle)
        POSITION_BIASED.labels(principle)
    for method in methods:
        COMPARISON_SECONDS.labels(method)
        for outcome in OUTCOMES.values():
            JUDGEMENTS.labels(method, outcome)
    for name in ("Compare", "Score", "Classify", "Critique", "Revise"):
        RESULT_SECONDS.labels(name)
        REQUEST_ITEMS.labels(name)
    for rated in ("true", "false"):
        RATINGS.labels(rated)
        for kind in ("critique", "revision"):
            TEXTS.labels(kind, rated)
    for kind in ("prompt", "completion"):
        TOKENS.labels(kind)
    for result in ("loaded", "refused"):
        RELOADS.labels(result)


def forget_principles(principles: Iterable[str]) -> None:
    """Stop exporting principles that are in no constitution any more, so that reloads do not pile up series."""
    for principle in principles:
        for counter in (PRINCIPLE_JUDGEMENTS, ORDERED, POSITION_BIASED):
            counter.remove_by_labels({"principle": principle})


def observe_judgement(judgement: judge_pb2.Judgement, method: str) -> None:
    """Count one judged pair."""
    JUDGEMENTS.labels(method, OUTCOMES[judgement.outcome]).inc()
    for one in judgement.principles:
        PRINCIPLE_JUDGEMENTS.labels(one.principle_id, OUTCOMES[one.outcome]).inc()
        if one.HasField("probability_a_shown_first"):
            ORDERED.labels(one.principle_id).inc()
            if same_position_wins(one.probability_a_shown_first, one.probability_a_shown_second):
                POSITION_BIASED.labels(one.principle_id).inc()
    if judgement.HasField("probability_a"):
        LABEL_ENTROPY.observe(_entropy(judgement.probability_a))
    observe_tokens(judgement.usage)


def observe_tokens(usage: judge_pb2.TokenUsage) -> None:
    """Count what a result has cost."""
    TOKENS.labels("prompt").inc(usage.prompt_tokens)
    TOKENS.labels("completion").inc(usage.completion_tokens)


def _entropy(probability: float) -> float:
    return -sum(p * math.log(p) for p in (probability, 1.0 - probability) if p > 0.0)

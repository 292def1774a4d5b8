"""Prometheus metrics of scoring given tokens in an engine of this process."""

from prometheus_client import Counter

TOKENS = Counter(
    "charter_scoring_tokens_total", "Tokens of texts to score: given, and computed after what they share.", ["kind"]
)
GIVEN, COMPUTED = TOKENS.labels("given"), TOKENS.labels("computed")

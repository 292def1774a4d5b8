"""What the policy service reports to Prometheus, beside the gRPC and weight metrics that every service has."""

from prometheus_client import Counter, Gauge, Histogram

GENERATED_TOKENS = Counter("charter_policy_generated_tokens_total", "Tokens sampled and sent, EOS included.")
PROMPT_TOKENS = Counter("charter_policy_prompt_tokens_total", "Prompt tokens of the samples sent.")
SAMPLES = Counter("charter_policy_samples_total", "Samples sent, by why they ended (eos, length).", ["finish"])
SAMPLE_SECONDS = Histogram(
    "charter_policy_sample_seconds",
    "Seconds from the arrival of a request to each of its samples.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
)
REQUESTS = Gauge("charter_policy_requests", "Generate calls under way.")
WAITING_REQUESTS = Gauge("charter_policy_waiting_requests", "Generate calls under way that have no sample yet.")

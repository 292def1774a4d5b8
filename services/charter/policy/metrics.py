"""What the policy service reports to Prometheus, beside the gRPC and weight metrics that every service has."""

from prometheus_client import Counter, Gauge, Histogram

GENERATED_TOKENS = Counter("charter_policy_generated_tokens_total", "Tokens sampled and sent, EOS included.")
PROMPT_TOKENS = Counter("charter_policy_prompt_tokens_total", "Prompt tokens of the samples sent.")
SAMPLES = Counter("charter_policy_samples_total", "Samples sent, by why they ended (eos, length, stop).", ["finish"])
SAMPLE_TOKENS = Histogram(
    "charter_policy_sample_tokens",
    "Tokens of a sample, EOS included.",
    buckets=(1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
)
REQUEST_SAMPLES = Histogram(
    "charter_policy_request_samples",
    "Samples that a Generate call asks for.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
FIRST_TOKEN_SECONDS = Histogram(
    "charter_policy_first_token_seconds",
    "Seconds from the arrival of a request to the first token of each of its samples, where the engine says it.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160),
)
SAMPLE_SECONDS = Histogram(
    "charter_policy_sample_seconds",
    "Seconds from the arrival of a request to each of its samples.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
)
REQUESTS = Gauge("charter_policy_requests", "Generate and Score calls under way.")
REQUEST_LIMIT = Gauge("charter_policy_requests_limit", "Generate and Score calls under way at which more are refused.")
WAITING_REQUESTS = Gauge("charter_policy_waiting_requests", "Generate calls under way that have no sample yet.")

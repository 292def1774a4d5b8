"""PolicyService of the policy: its calls and samples are counted."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from charter.generation.servicer import PolicyServicer
from charter.inference.engine import Engine, Finish, GeneratedSample
from charter.policy import metrics
from charter.rpc import tracing
from charter.rpc.gate import Gate


class MeasuredPolicyServicer(PolicyServicer):
    """Tells Prometheus what it does."""

    def __init__(self, engine: Engine, max_requests: int, gate: Gate) -> None:
        super().__init__(engine, max_requests, gate)
        metrics.REQUEST_LIMIT.set(max_requests)
        for finish in Finish:
            metrics.SAMPLES.labels(finish.value)

    @contextmanager
    def _waits(self, samples: int) -> Iterator[None]:
        metrics.REQUEST_SAMPLES.observe(samples)
        with metrics.WAITING_REQUESTS.track_inprogress():
            yield

    @contextmanager
    def _works(self) -> Iterator[None]:
        with metrics.REQUESTS.track_inprogress():
            yield

    def _sampled(self, sample: GeneratedSample, start: float) -> None:
        exemplar = tracing.exemplar()
        metrics.SAMPLE_SECONDS.observe(time.monotonic() - start, exemplar)
        if sample.first_token_time is not None:
            metrics.FIRST_TOKEN_SECONDS.observe(sample.first_token_time - start, exemplar)
        prompt_tokens, tokens = sample.usage
        metrics.GENERATED_TOKENS.inc(tokens)
        metrics.PROMPT_TOKENS.inc(prompt_tokens)
        metrics.SAMPLE_TOKENS.observe(tokens)
        metrics.SAMPLES.labels(sample.finish.value).inc()

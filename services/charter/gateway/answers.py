"""What both kinds of completion say alike: ids, usage, ends, and log-probs that JSON can hold."""

import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

from charter.gateway import metrics
from charter.v1 import policy_pb2

FINISH = {
    policy_pb2.FINISH_REASON_EOS: "stop",
    policy_pb2.FINISH_REASON_STOP: "stop",
    policy_pb2.FINISH_REASON_LENGTH: "length",
}
# JSON has no infinity; OpenAI writes this in its place.
_LEAST_LOGPROB = -9999.0


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """Fields of every object and chunk of one answer."""
    return {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The usage of a request, which is counted."""
    metrics.TOKENS.labels("prompt").inc(prompt_tokens)
    metrics.TOKENS.labels("completion").inc(completion_tokens)
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def usage_of(samples: Sequence[policy_pb2.Sample], answers_per_prompt: int) -> dict[str, int]:
    """Usage of answers in the order of their prompts: a prompt counts once."""
    prompts = sum(tokens_of(one)[0] for one in samples[::answers_per_prompt])
    return usage(prompts, sum(tokens_of(one)[1] for one in samples))


def tokens_of(sample: policy_pb2.Sample) -> tuple[int, int]:
    """How many tokens its prompt and the answer have, which an endpoint behind the policy counts itself."""
    if sample.HasField("counted_tokens"):
        return sample.counted_prompt_tokens, sample.counted_tokens
    return len(sample.prompt_token_ids), len(sample.token_ids)


def fingerprint(samples: Iterable[policy_pb2.Sample]) -> str:
    """Which weights wrote the answers."""
    versions = {span.weight_version for one in samples for span in one.version_spans}
    return "-".join(["weights", *map(str, sorted(versions))])


def finite(logprob: float) -> float:
    """A log-prob that JSON can hold."""
    return max(logprob, _LEAST_LOGPROB)

"""Requests and samples between their wire form and the engine's."""

from collections.abc import Iterable

import numpy as np

from charter.inference.engine import Finish, GeneratedSample, Prompt, Sampling, ScoredPrompt, TokenLogprob, TokenPlace
from charter.rpc.errors import StatusError, invalid_fields
from charter.rpc.messages import chat_messages
from charter.rpc.tensors import to_tensor
from charter.rpc.validation import Violation
from charter.v1 import policy_pb2

_FINISH_REASONS = {
    Finish.EOS: policy_pb2.FINISH_REASON_EOS,
    Finish.LENGTH: policy_pb2.FINISH_REASON_LENGTH,
    Finish.STOP: policy_pb2.FINISH_REASON_STOP,
}


def prompts_of(prompts: Iterable[policy_pb2.GenerationPrompt]) -> list[Prompt]:
    """From the wire. Raises INVALID_ARGUMENT for a prompt that is not exactly one of its forms."""
    return [_prompt(index, prompt) for index, prompt in enumerate(prompts)]


def _prompt(place: int, prompt: policy_pb2.GenerationPrompt) -> Prompt:
    def refused(field: str, problem: str) -> StatusError:
        return invalid_fields([Violation(f"prompts[{place}]{field}", problem)])

    forms = bool(prompt.messages or prompt.as_user) + bool(prompt.text) + bool(prompt.token_ids)
    if forms == 0:
        raise refused(".messages", "needs at least 1 items, has 0")
    if forms > 1:
        raise refused("", "takes one of text, token_ids, and messages or as_user")
    if prompt.assistant_prefix and (prompt.as_user or not prompt.messages):
        raise refused(".assistant_prefix", "stands beside messages only")
    return Prompt(
        chat_messages(prompt.messages),
        prompt.assistant_prefix,
        seed=prompt.seed if prompt.HasField("seed") else None,
        text="" if prompt.special_tokens else prompt.text,
        as_user=prompt.as_user,
        raw=(prompt.text if prompt.special_tokens else "") or tuple(prompt.token_ids) or None,
    )


def sampling_of(parameters: policy_pb2.SamplingParameters) -> Sampling:
    """From the wire."""
    return Sampling(
        max_new_tokens=parameters.max_new_tokens if parameters.HasField("max_new_tokens") else None,
        temperature=parameters.temperature if parameters.HasField("temperature") else 1.0,
        top_p=parameters.top_p if parameters.HasField("top_p") else 1.0,
        seed=parameters.seed if parameters.HasField("seed") else None,
        stop=tuple(parameters.stop),
        top_logprobs=parameters.top_logprobs if parameters.HasField("top_logprobs") else None,
    )


def sample_response(sample: GeneratedSample) -> policy_pb2.GenerateResponse:
    """A finished sample to the wire."""
    return policy_pb2.GenerateResponse(
        prompt_index=sample.prompt_index,
        sample_index=sample.sample_index,
        sample=policy_pb2.Sample(
            text=sample.text,
            token_ids=sample.token_ids,
            logprobs=to_tensor(np.asarray(sample.logprobs, dtype=np.float32)),
            finish_reason=_FINISH_REASONS[sample.finish],
            version_spans=[
                policy_pb2.VersionSpan(start=span.start, end=span.end, weight_version=span.version)
                for span in sample.version_spans
            ],
            prompt_token_ids=sample.prompt_token_ids,
            places=map(place, sample.places),
            counted_prompt_tokens=sample.counted_tokens[0] if sample.counted_tokens is not None else None,
            counted_tokens=sample.counted_tokens[1] if sample.counted_tokens is not None else None,
        ),
    )


def score_response(index: int, scored: ScoredPrompt, version: int) -> policy_pb2.PolicyServiceScoreResponse:
    """A scored prompt to the wire."""
    return policy_pb2.PolicyServiceScoreResponse(
        prompt_index=index,
        text=scored.text,
        places=map(place, scored.places),
        next=map(_token, scored.next),
        next_ends=scored.next_ends,
        weight_version=version,
    )


def place(one: TokenPlace) -> policy_pb2.TokenPlace:
    """A place in a text to the wire."""
    return policy_pb2.TokenPlace(token=_token(one.token), top=map(_token, one.top))


def _token(one: TokenLogprob) -> policy_pb2.TokenLogprob:
    return policy_pb2.TokenLogprob(token_id=one.token_id, text=one.text, logprob=one.logprob)

"""Completions of texts and tokens as they stand: https://platform.openai.com/docs/api-reference/completions.

With ``echo`` the prompt is part of the answer, its log-probs too: so lm-evaluation-harness measures how likely a text
is.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from charter.gateway.answers import FINISH, fingerprint, finite, head, tokens_of, usage, usage_of
from charter.gateway.asking import pieces, samples
from charter.gateway.parameters import CompletionParameters
from charter.gateway.policies import Policy
from charter.v1 import policy_pb2

_Scored = policy_pb2.PolicyServiceScoreResponse


async def whole(asked: CompletionParameters, policy: Policy) -> dict[str, Any]:
    """All answers at once."""
    scored = await _scores(asked, policy)
    answers = _known(asked, scored)
    if answers is None:
        answers = await samples(policy, asked.request())
    choices = [_choice(asked, scored, index, one) for index, one in enumerate(answers)]
    return {
        **head("text_completion", "cmpl", asked.model),
        "choices": choices,
        "usage": usage_of(answers, asked.n),
        "system_fingerprint": fingerprint(answers),
    }


async def chunks(asked: CompletionParameters, policy: Policy) -> AsyncGenerator[dict[str, Any], None]:
    """The answers as they are written, with ``echo`` behind their prompts."""
    common = head("text_completion", "cmpl", asked.model)
    scored = await _scores(asked, policy)
    known = _known(asked, scored)
    if known is not None:
        for index, one in enumerate(known):
            yield {**common, "choices": [_choice(asked, scored, index, one)]}
        counted = usage_of(known, asked.n)
    else:
        lengths: dict[int, int] = {}
        prompt_tokens = completion_tokens = 0
        async with aclosing(pieces(policy, asked.request())) as found:
            async for piece in found:
                prompt = scored[piece.index // asked.n] if scored and piece.index not in lengths else None
                places = [*(prompt.places if prompt else ()), *piece.places]
                text = (_prompt_text(asked, scored, piece.index) if prompt else "") + piece.text
                start = lengths.get(piece.index, 0)
                lengths[piece.index] = start + sum(len(one.token.text) for one in places)
                finish = None if piece.sample is None else FINISH[piece.sample.finish_reason]
                logprobs = None if asked.logprobs is None else _logprobs(places, start)
                choice = {"index": piece.index, "text": text, "logprobs": logprobs, "finish_reason": finish}
                yield {**common, "choices": [choice]}
                if piece.sample is not None:
                    of_prompt, of_answer = tokens_of(piece.sample)
                    prompt_tokens += of_prompt if piece.index % asked.n == 0 else 0
                    completion_tokens += of_answer
        counted = usage(prompt_tokens, completion_tokens)
    if asked.stream_options.include_usage:
        yield {**common, "choices": [], "usage": counted}


async def _scores(asked: CompletionParameters, policy: Policy) -> list[_Scored]:
    """The prompts with their log-probs, where they are to be echoed."""
    if not asked.echo:
        return []
    request = policy_pb2.PolicyServiceScoreRequest(prompts=asked.policy_prompts(), top_logprobs=asked.logprobs or 0)
    async with aclosing(policy.score(request)) as found:
        return sorted([one async for one in found], key=lambda one: one.prompt_index)


def _known(asked: CompletionParameters, scored: Sequence[_Scored]) -> list[policy_pb2.Sample] | None:
    """The answers that need no sampling: none at all behind an echo, or the one likeliest token."""
    if not asked.echo or asked.max_tokens > 1 or (asked.max_tokens == 1 and (asked.temperature or asked.stop)):
        return None
    return [_likeliest(asked, one) for one in scored for _ in range(asked.n)]


def _likeliest(asked: CompletionParameters, scored: _Scored) -> policy_pb2.Sample:
    prompt_ids = [one.token.token_id for one in scored.places]
    if asked.max_tokens == 0:
        return policy_pb2.Sample(prompt_token_ids=prompt_ids, finish_reason=policy_pb2.FINISH_REASON_LENGTH)
    first, end = scored.next[0], scored.next_ends
    return policy_pb2.Sample(
        text="" if end else first.text,
        token_ids=[first.token_id],
        places=[policy_pb2.TokenPlace(token=first, top=scored.next[: asked.logprobs or 0])],
        finish_reason=policy_pb2.FINISH_REASON_EOS if end else policy_pb2.FINISH_REASON_LENGTH,
        prompt_token_ids=prompt_ids,
        version_spans=[policy_pb2.VersionSpan(start=0, end=1, weight_version=scored.weight_version)],
    )


def _choice(
    asked: CompletionParameters, scored: Sequence[_Scored], index: int, sample: policy_pb2.Sample
) -> dict[str, Any]:
    text, places = sample.text, list(sample.places)
    if scored:
        text = _prompt_text(asked, scored, index) + text
        places = [*scored[index // asked.n].places, *places]
    return {
        "index": index,
        "text": text,
        "logprobs": None if asked.logprobs is None else _logprobs(places, 0),
        "finish_reason": FINISH[sample.finish_reason],
    }


def _prompt_text(asked: CompletionParameters, scored: Sequence[_Scored], index: int) -> str:
    """A prompt as the client wrote it, or its tokens as text."""
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    given = prompts[index // asked.n]
    return given if isinstance(given, str) else scored[index // asked.n].text


def _logprobs(places: Sequence[policy_pb2.TokenPlace], start: int) -> dict[str, Any]:
    """Lists side by side. Every token that was read or written is in them, one that ends the answer too."""
    offsets = [start]
    for one in places[:-1]:
        offsets.append(offsets[-1] + len(one.token.text))
    return {
        "tokens": [one.token.text for one in places],
        "token_logprobs": [finite(one.token.logprob) if one.token.HasField("logprob") else None for one in places],
        "top_logprobs": [_likeliest_by_text(one) for one in places],
        "text_offset": offsets[: len(places)],
    }


def _likeliest_by_text(place: policy_pb2.TokenPlace) -> dict[str, float] | None:
    """Log-probs by the texts of tokens, the token itself among them; of tokens with one text the likeliest."""
    if not place.token.HasField("logprob"):
        return None
    found: dict[str, float] = {}
    for one in (*place.top, place.token):
        found[one.text] = max(finite(one.logprob), found.get(one.text, -float("inf")))
    return found

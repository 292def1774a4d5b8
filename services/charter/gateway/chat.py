"""Chat completions: https://platform.openai.com/docs/api-reference/chat."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from charter.gateway.answers import FINISH, fingerprint, finite, head, usage_of
from charter.gateway.asking import pieces, samples
from charter.gateway.parameters import ChatParameters
from charter.gateway.policies import Policy
from charter.v1 import policy_pb2


async def whole(asked: ChatParameters, policy: Policy) -> dict[str, Any]:
    """All answers at once."""
    answers = await samples(policy, asked.request())
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": _logprobs(one.places) if asked.logprobs else None,
            "finish_reason": FINISH[one.finish_reason],
        }
        for index, one in enumerate(answers)
    ]
    return {
        **head("chat.completion", "chatcmpl", asked.model),
        "choices": choices,
        "usage": usage_of(answers, asked.n),
        "system_fingerprint": fingerprint(answers),
    }


async def chunks(asked: ChatParameters, policy: Policy) -> AsyncGenerator[dict[str, Any], None]:
    """The answers as they are written."""
    common = head("chat.completion.chunk", "chatcmpl", asked.model)
    begun: set[int] = set()
    ended: list[policy_pb2.Sample] = []

    def chunk(index: int, delta: dict[str, str], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**common, "choices": [choice]}

    async with aclosing(pieces(policy, asked.request())) as found:
        async for one in found:
            if one.index not in begun:
                begun.add(one.index)
                yield chunk(one.index, {"role": "assistant", "content": ""})
            if one.text or one.places:
                yield chunk(one.index, {"content": one.text}, _logprobs(one.places) if asked.logprobs else None)
            if one.sample is not None:
                ended.append(one.sample)
                yield chunk(one.index, {}, finish=FINISH[one.sample.finish_reason])
    counted = usage_of(ended, asked.n)
    if asked.stream_options.include_usage:
        yield {**common, "choices": [], "usage": counted, "system_fingerprint": fingerprint(ended)}


def _logprobs(places: Iterable[policy_pb2.TokenPlace]) -> dict[str, Any]:
    content = [_token(one.token) | {"top_logprobs": [_token(top) for top in one.top]} for one in places]
    return {"content": content, "refusal": None}


def _token(one: policy_pb2.TokenLogprob) -> dict[str, Any]:
    # Of a part of a character nobody has kept the bytes.
    known = None if "\ufffd" in one.text else list(one.text.encode())
    return {"token": one.text, "logprob": finite(one.logprob), "bytes": known}

"""Answers from vLLM, and the log-probs of each of their tokens and of a prompt's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charter.inference.answer_end import begun, ending
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import GeneratedSample, OnText, Prompt, Sampling, ScoredPrompt, TokenPlace, VersionSpan
from charter.inference.vllm.requests import Request, counted

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer that is asked for; ``most_tokens`` is its own limit."""

    prompt: Prompt
    prompt_index: int
    sample_index: int
    prompt_ids: Sequence[int]
    most_tokens: int
    seed: int | None


async def sample(
    request: Request, chat: ChatTokenizer, asked: Asked, sampling: Sampling, on_text: OnText | None
) -> GeneratedSample:
    """Sample one answer; ``on_text`` hears of it as it grows."""
    told = 0

    def grown(answer: "CompletionOutput") -> None:
        nonlocal told
        assert on_text is not None
        text = begun(chat, asked.prompt, answer.token_ids, sampling.stop)
        on_text(asked.prompt_index, asked.sample_index, text, _places(chat, answer, sampling.top_logprobs, told))
        told = len(answer.token_ids)

    # vLLM looks for stop texts in what it writes out itself.
    stop = {"stop": list(sampling.stop), "detokenize": True, "skip_special_tokens": False} if sampling.stop else {}
    output = await request(
        list(asked.prompt_ids),
        None if on_text is None else grown,
        max_tokens=asked.most_tokens,
        temperature=sampling.temperature,
        stop_token_ids=sorted(chat.stop_ids),
        seed=asked.seed,
        logprobs=sampling.top_logprobs or 0,
        **stop,
    )
    answer = output.outputs[0]
    token_ids = tuple(answer.token_ids)
    text, finish = ending(chat, asked.prompt, token_ids, sampling.stop)
    return GeneratedSample(
        prompt_index=asked.prompt_index,
        sample_index=asked.sample_index,
        text=text,
        token_ids=token_ids,
        logprobs=tuple(place[token].logprob for place, token in zip(answer.logprobs, token_ids, strict=True)),
        finish=finish,
        version_spans=tuple(VersionSpan(s.start, s.end, int(s.version)) for s in answer.weight_versions),
        prompt_token_ids=tuple(asked.prompt_ids),
        places=_places(chat, answer, sampling.top_logprobs, 0),
    )


async def scored_prompt(request: Request, chat: ChatTokenizer, ids: list[int], top: int) -> ScoredPrompt:
    """Log-probs of a prompt's tokens, and of the likeliest ``top`` in each place."""
    output = counted(await request(ids, max_tokens=1, temperature=0.0, prompt_logprobs=top, logprobs=max(1, top)))
    first = chat.place(ids[0], None, ())
    others = [_place(chat, *place, top) for place in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
    following = _likeliest(output.outputs[0].logprobs[0], max(1, top))
    ends = following[0][0] in chat.stop_ids
    return ScoredPrompt(chat.prompt_text(ids), (first, *others), chat.with_texts(following), ends)


def _places(chat: ChatTokenizer, answer: "CompletionOutput", top: int | None, start: int) -> tuple[TokenPlace, ...]:
    """The tokens of an answer from a place on, where they are asked for."""
    if top is None:
        return ()
    written = zip(answer.token_ids[start:], answer.logprobs[start:], strict=True)
    return tuple(_place(chat, *place, top) for place in written)


def _place(chat: ChatTokenizer, token: int, place: "dict[int, Logprob]", top: int) -> TokenPlace:
    return chat.place(token, place[token].logprob, _likeliest(place, top))


def _likeliest(place: "dict[int, Logprob]", count: int) -> list[tuple[int, float]]:
    ranked = sorted(((token, one.logprob) for token, one in place.items()), key=lambda one: one[1], reverse=True)
    return ranked[:count]

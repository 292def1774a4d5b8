"""A deterministic engine without a model: for tests of what lies around engines. Never part of a result.

Its tokens are the UTF-8 bytes of its text; everything it says is drawn from digests of its input.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from charter.hashing import stable_number
from charter.inference.answer_end import before_stop
from charter.inference.concurrent import as_finished
from charter.inference.engine import (
    AnswerLogLikelihood,
    ChoiceLogprobs,
    ContextTooLongError,
    EngineInfo,
    Finish,
    GeneratedSample,
    OnText,
    Prompt,
    Sampling,
    ScoredPrompt,
    TokenLogprob,
    TokenPlace,
    VersionSpan,
)
from charter.inference.weights_file import read_shapes

EOS_ID = 256
_WORDS = (
    "the",
    "model",
    "says",
    "that",
    "a",
    "good",
    "answer",
    "is",
    "short",
    "and",
    "kind",
    "or",
    "none",
    "at",
    "all",
)


class InjectedFaultError(RuntimeError):
    """The fault that ``fail_every`` asked for."""


class FakeEngine:
    """Answers from digests, after as long as it is told to.

    ``start_seconds`` is the time to load, ``latency_seconds`` the time before any answer,
    ``seconds_per_token`` the time for each token of a sample; ``sequences`` samples of all calls are written side by
    side (0 = all).
    Every ``fail_every``-th call (0 = none) raises ``InjectedFaultError`` when its first result is due;
    every generate call hangs after ``stall_after`` samples (0 = none).
    """

    def __init__(
        self,
        model: str = "fake",
        *,
        start_seconds: float = 0.0,
        latency_seconds: float = 0.0,
        seconds_per_token: float = 0.0,
        sequences: int = 0,
        fail_every: int = 0,
        stall_after: int = 0,
        max_context_tokens: int = 4096,
    ) -> None:
        self._model = model
        self._start_seconds = start_seconds
        self._latency_seconds = latency_seconds
        self._seconds_per_token = seconds_per_token
        self._places = asyncio.Semaphore(sequences or 2**31)
        self._fail_every = fail_every
        self._stall_after = stall_after
        self._max_context = max_context_tokens
        self._calls = 0
        self._version = 0
        self._digest = ""
        self._asleep = False

    async def start(self) -> None:
        """Take as long as loading would."""
        await asyncio.sleep(self._start_seconds)

    async def stop(self) -> None:
        """Nothing to free."""

    def info(self) -> EngineInfo:
        """What is served now."""
        return EngineInfo(self._model, "fake", self._version, self._digest, 1, self._max_context)

    async def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        samples_per_prompt: int = 1,
        on_text: OnText | None = None,
    ) -> AsyncGenerator[GeneratedSample, None]:
        """Sample answers, the first to be finished first. See ``Engine.generate``."""
        most = sampling.most_tokens([_prompt_ids(prompt) for prompt in prompts], self._max_context)
        await self._wait_or_fail()
        first_token_time = time.monotonic() + self._seconds_per_token
        samples = [
            replace(
                self._sample(prompt, replace(sampling, max_new_tokens=most[prompt_index]), prompt_index, sample_index),
                first_token_time=first_token_time,
            )
            for prompt_index, prompt in enumerate(prompts)
            for sample_index in range(samples_per_prompt)
        ]
        sent = 0
        async with aclosing(as_finished(self._write(sample, on_text) for sample in samples)) as written:
            async for one in written:
                yield one
                sent += 1
                if sent == self._stall_after < len(samples):
                    await asyncio.Event().wait()

    async def choice_logprobs(
        self, prompts: Sequence[Prompt], choices: Sequence[str]
    ) -> list[ChoiceLogprobs | ContextTooLongError]:
        """Log-probs whose mass on the choices is 0.9. See ``Engine.choice_logprobs``."""
        await self._wait_or_fail()
        results: list[ChoiceLogprobs | ContextTooLongError] = []
        for index, prompt in enumerate(prompts):
            tokens = len(_prompt_ids(prompt))
            if tokens + 1 > self._max_context:
                results.append(ContextTooLongError(index, tokens + 1, self._max_context))
                continue
            weights = [_uniform(self._version, prompt, choice) for choice in choices]
            results.append(ChoiceLogprobs(tuple(math.log(0.9 * w / sum(weights)) for w in weights), tokens))
        return results

    async def answer_loglikelihoods(
        self, items: Sequence[tuple[Prompt, str]]
    ) -> list[AnswerLogLikelihood | ContextTooLongError]:
        """Between -1 and 0 nats a token. See ``Engine.answer_loglikelihoods``."""
        await self._wait_or_fail()
        results: list[AnswerLogLikelihood | ContextTooLongError] = []
        for index, (prompt, answer) in enumerate(items):
            before, tokens = len(_prompt_ids(prompt)), len(answer.encode())
            if before + tokens > self._max_context:
                results.append(ContextTooLongError(index, before + tokens, self._max_context))
                continue
            results.append(AnswerLogLikelihood(-tokens * _uniform(self._version, prompt, answer), tokens, before))
        return results

    async def score_prompts(
        self, prompts: Sequence[Prompt], top_logprobs: int
    ) -> list[ScoredPrompt | ContextTooLongError]:
        """Between -1 and 0 nats a token. See ``Engine.score_prompts``."""
        await self._wait_or_fail()
        results: list[ScoredPrompt | ContextTooLongError] = []
        for index, prompt in enumerate(prompts):
            ids = _prompt_ids(prompt)
            if len(ids) > self._max_context:
                results.append(ContextTooLongError(index, len(ids), self._max_context))
                continue
            logprobs = [None, *(-_uniform(self._version, ids[:place]) for place in range(1, len(ids)))]
            places = tuple(_place(*one, top_logprobs) for one in zip(ids, logprobs, strict=True))
            results.append(ScoredPrompt(ids.decode(errors="replace"), places, _place(EOS_ID, -0.1, 1).top, True))
        return results

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Become ``version``. Raises ``WeightMismatchError`` when the file is not safetensors."""
        read_shapes(path)
        self._version, self._digest = version, digest
        return 0.0

    async def sleep(self) -> None:
        """Refuse to work from now on."""
        self._asleep = True

    async def wake(self) -> None:
        """Work again."""
        self._asleep = False

    async def _write(self, sample: GeneratedSample, on_text: OnText | None) -> GeneratedSample:
        async with self._places:
            if on_text is None:
                await asyncio.sleep(len(sample.token_ids) * self._seconds_per_token)
                return sample
            for tokens in range(1, len(sample.token_ids)):
                await asyncio.sleep(self._seconds_per_token)
                new = sample.places[tokens - 1 : tokens]
                on_text(sample.prompt_index, sample.sample_index, sample.text[:tokens], new)
        return sample

    async def _wait_or_fail(self) -> None:
        if self._asleep:
            raise RuntimeError("the fake engine was called while it slept")
        self._calls += 1
        failing = self._fail_every > 0 and self._calls % self._fail_every == 0
        await asyncio.sleep(self._latency_seconds)
        if failing:
            raise InjectedFaultError(f"injected fault: call {self._calls} of the fake engine")

    def _sample(self, prompt: Prompt, sampling: Sampling, prompt_index: int, sample_index: int) -> GeneratedSample:
        draws = [_uniform(self._version, prompt, sampling.seed, sample_index, step) for step in range(len(_WORDS))]
        words = [_WORDS[int(draw * len(_WORDS))] for draw in draws[: 3 + int(draws[0] * 10)]]
        written = " ".join(words)
        before = before_stop(written, sampling.stop)
        if before is not None:
            # Up to the end of the stop text.
            found = next(one for one in sampling.stop if written.startswith(one, len(before)))
            written = written[: len(before) + len(found)]
        ids = [*written.encode(), *([] if before is not None else [EOS_ID])][: sampling.max_new_tokens]
        text = bytes(ids[:-1] if ids[-1] == EOS_ID else ids).decode()
        cut = before_stop(text, sampling.stop)
        logprobs = tuple(-_uniform(prompt, sample_index, place) for place in range(len(ids)))
        return GeneratedSample(
            prompt_index=prompt_index,
            sample_index=sample_index,
            text=text if cut is None else cut,
            token_ids=tuple(ids),
            logprobs=logprobs,
            finish=Finish.STOP if cut is not None else Finish.EOS if ids[-1] == EOS_ID else Finish.LENGTH,
            version_spans=(VersionSpan(0, len(ids), self._version),),
            prompt_token_ids=tuple(_prompt_ids(prompt)),
            places=()
            if sampling.top_logprobs is None
            else tuple(_place(*one, sampling.top_logprobs) for one in zip(ids, logprobs, strict=True)),
        )


def _place(token: int, logprob: float | None, top: int) -> TokenPlace:
    """A token that is the likeliest in its place, and the only one that is named."""
    one = TokenLogprob(token, "<eos>" if token == EOS_ID else bytes([token]).decode(errors="replace"), logprob)
    return TokenPlace(one, (one,) if top and logprob is not None else ())


def _prompt_ids(prompt: Prompt) -> bytes:
    if prompt.raw is not None:
        return prompt.raw.encode() if isinstance(prompt.raw, str) else bytes(prompt.raw)
    turns = [f"{message.role}: {message.content}\n" for message in prompt.messages]
    next_turn = "user: " if prompt.as_user else f"assistant: {prompt.assistant_prefix}"
    return (prompt.text or "".join([*turns, next_turn])).encode()


def _uniform(*parts: object) -> float:
    """A number in (0, 1) that depends on nothing but ``parts``."""
    return ((stable_number(repr(parts)) >> 16) + 1) / (2**48 + 2)

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
        for index, prompt in enumerate(prompts):
            needed = len(_prompt_ids(prompt)) + sampling.max_new_tokens
            if needed > self._max_context:
                raise ContextTooLongError(index, needed, self._max_context)
        await self._wait_or_fail()
        first_token_time = time.monotonic() + self._seconds_per_token
        samples = [
            replace(self._sample(prompt, sampling, prompt_index, sample_index), first_token_time=first_token_time)
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
                on_text(sample.prompt_index, sample.sample_index, sample.text[:tokens])
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
        ids = [*" ".join(words).encode(), EOS_ID][: sampling.max_new_tokens]
        ended = ids[-1] == EOS_ID
        return GeneratedSample(
            prompt_index=prompt_index,
            sample_index=sample_index,
            text=bytes(ids[:-1] if ended else ids).decode(),
            token_ids=tuple(ids),
            logprobs=tuple(-_uniform(prompt, sample_index, place) for place in range(len(ids))),
            finish=Finish.EOS if ended else Finish.LENGTH,
            version_spans=(VersionSpan(0, len(ids), self._version),),
            prompt_token_ids=tuple(_prompt_ids(prompt)),
        )


def _prompt_ids(prompt: Prompt) -> bytes:
    turns = [f"{message.role}: {message.content}\n" for message in prompt.messages]
    next_turn = "user: " if prompt.as_user else f"assistant: {prompt.assistant_prefix}"
    return (prompt.text or "".join([*turns, next_turn])).encode()


def _uniform(*parts: object) -> float:
    """A number in (0, 1) that depends on nothing but ``parts``."""
    return ((stable_number(repr(parts)) >> 16) + 1) / (2**48 + 2)

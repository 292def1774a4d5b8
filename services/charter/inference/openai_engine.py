"""Any OpenAI-compatible endpoint as an engine, for the judge: text and probabilities of answer tokens only."""

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from charter.inference.engine import (
    AnswerLogLikelihood,
    ChoiceLogprobs,
    ContextTooLongError,
    EngineInfo,
    Finish,
    GeneratedSample,
    OnText,
    Prompt,
    RefusedRequestError,
    Sampling,
)

# As many alternatives as the API gives.
_TOP_LOGPROBS = 20
# Calls at a time; endpoints limit their rate.
_CONCURRENT_CALLS = 16
# Seconds for one answer; the client repeats a failed call twice, with growing pauses.
_TIMEOUT = 120.0


class OpenAIEngine:
    """Speaks the chat-completions API. The key is read from ``OPENAI_API_KEY``.

    ``assistant_prefix`` is continued where the endpoint can do that (vLLM, SGLang); elsewhere the model is asked to
    write only what follows it. Every method raises ``ConnectionError`` when the endpoint cannot be reached or does not
    serve, and ``RefusedRequestError`` when it refuses a request.
    """

    def __init__(self, model: str, *, endpoint: str) -> None:
        self._model = model
        self._endpoint = endpoint
        self._client: AsyncOpenAI
        self._continues_prefix = True
        self._places = asyncio.Semaphore(_CONCURRENT_CALLS)

    async def start(self) -> None:
        """Ask the endpoint for one token. Raises ``ConnectionError`` when it does not answer."""
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._client = AsyncOpenAI(base_url=self._endpoint, api_key=key, timeout=_TIMEOUT)
        probe: dict[str, Any] = {"max_tokens": 1}
        try:
            await self._complete([{"role": "user", "content": "Hi"}, _turn("He")], probe | _continued())
        except RefusedRequestError:
            self._continues_prefix = False
            await self._complete([{"role": "user", "content": "Hi"}], probe)

    async def stop(self) -> None:
        """Close the connections."""
        if hasattr(self, "_client"):
            await self._client.close()

    def info(self) -> EngineInfo:
        """What is served now; the endpoint does not tell parameters and context."""
        return EngineInfo(self._model, "openai", 0, "", 0, 0)

    async def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        samples_per_prompt: int = 1,
        on_text: OnText | None = None,
    ) -> AsyncGenerator[GeneratedSample, None]:
        """Sample answers, each yielded when it is there. They have text only: no token ids, no log-probs.

        Nobody watches a judge write: raises ``RefusedRequestError`` for ``on_text``.
        """
        if on_text is not None:
            raise RefusedRequestError("engine openai does not stream text")

        async def sample(place: int, prompt_index: int, sample_index: int) -> GeneratedSample:
            parameters: dict[str, Any] = {
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
            }
            if sampling.seed is not None:
                parameters["seed"] = (sampling.seed + place) % 2**63
            completion = await self._answer(prompts[prompt_index], parameters)
            choice = completion.choices[0]
            return GeneratedSample(
                prompt_index=prompt_index,
                sample_index=sample_index,
                text=choice.message.content or "",
                token_ids=(),
                logprobs=(),
                finish=Finish.LENGTH if choice.finish_reason == "length" else Finish.EOS,
                version_spans=(),
                prompt_token_ids=(),
            )

        places = count()
        tasks = [
            asyncio.create_task(sample(next(places), prompt_index, sample_index))
            for prompt_index in range(len(prompts))
            for sample_index in range(samples_per_prompt)
        ]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()

    async def choice_logprobs(
        self, prompts: Sequence[Prompt], choices: Sequence[str]
    ) -> list[ChoiceLogprobs | ContextTooLongError]:
        """Log-probs of each choice among the 20 likeliest next tokens, white space around a token left out.

        A choice that is not among them gets minus infinity: its probability is below every one of theirs.
        """

        async def score(prompt: Prompt) -> ChoiceLogprobs:
            asked = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": _TOP_LOGPROBS}
            completion = await self._answer(prompt, asked)
            logprobs = completion.choices[0].logprobs
            if logprobs is None or not logprobs.content:
                raise RefusedRequestError(f"{self._endpoint} gave no log-probs: the judge needs an endpoint that does")
            mass = dict.fromkeys(choices, 0.0)
            for candidate in logprobs.content[0].top_logprobs:
                if candidate.token.strip() in mass:
                    mass[candidate.token.strip()] += math.exp(candidate.logprob)
            tokens = completion.usage.prompt_tokens if completion.usage else 0
            return ChoiceLogprobs(tuple(math.log(p) if p else -math.inf for p in mass.values()), tokens)

        return list(await asyncio.gather(*(score(prompt) for prompt in prompts)))

    async def answer_loglikelihoods(
        self, items: Sequence[tuple[Prompt, str]]
    ) -> list[AnswerLogLikelihood | ContextTooLongError]:
        """Not to be had from the chat-completions API: raises ``RefusedRequestError``."""
        raise RefusedRequestError("an OpenAI-compatible endpoint gives no log-likelihood of a given answer")

    async def load_weights(self, path: Path, version: int, digest: str) -> None:
        """Not to be had: raises ``RefusedRequestError``."""
        raise RefusedRequestError("the weights of an endpoint cannot be replaced")

    async def _answer(self, prompt: Prompt, parameters: dict[str, Any]) -> ChatCompletion:
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        if prompt.assistant_prefix and self._continues_prefix:
            return await self._complete([*turns, _turn(prompt.assistant_prefix)], parameters | _continued())
        if prompt.assistant_prefix:
            asked = f"\n\nYour answer begins with: {prompt.assistant_prefix}\nWrite only what follows that beginning."
            turns[-1] = turns[-1] | {"content": turns[-1]["content"] + asked}
        return await self._complete(turns, parameters)

    async def _complete(self, messages: list[dict[str, str]], parameters: dict[str, Any]) -> ChatCompletion:
        try:
            async with self._places:
                completion = await self._client.chat.completions.create(
                    model=self._model,
                    messages=messages,  # type: ignore[arg-type]
                    **parameters,
                )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise RefusedRequestError(f"{self._endpoint} refused the request: {error}") from error
        except openai.APIError as error:
            raise ConnectionError(
                f"the endpoint {self._endpoint} does not serve {self._model}: {error}. Is it running, is the model's "
                "name right, and OPENAI_API_KEY set if it needs a key?"
            ) from error
        if not completion.choices:
            raise ConnectionError(f"the endpoint {self._endpoint} answered without a choice")
        return completion


def _turn(prefix: str) -> dict[str, str]:
    return {"role": "assistant", "content": prefix}


def _continued() -> dict[str, Any]:
    """Parameters by which vLLM and SGLang continue the last turn instead of opening a new one."""
    return {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}

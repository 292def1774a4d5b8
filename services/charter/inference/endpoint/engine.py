"""Any OpenAI-compatible endpoint as an engine, for the judge: text and probabilities of answer tokens only."""

import asyncio
import json
import logging
import math
import os
from collections.abc import AsyncGenerator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from charter.inference.endpoint.client import EndpointClient, Limits, NotServedError
from charter.inference.endpoint.reply import Reply
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

logger = logging.getLogger("charter.inference")

# As many alternatives as the API gives, and as many as more modest endpoints give.
_TOP_LOGPROBS = (20, 5)
# A choice as JSON, with room for models that write white space.
_WRITTEN_TOKENS = 32


class OpenAIEngine:
    """Speaks the chat-completions API. The key is read from ``OPENAI_API_KEY``.

    ``assistant_prefix`` is continued where the endpoint can do that (vLLM, SGLang); elsewhere the model is asked to
    write only what follows it. Where the endpoint gives no log-probs, choices are read from structured output
    (a JSON schema) and marked as ``written``. Every method raises ``ConnectionError`` when the endpoint cannot be
    reached or does not serve, ``RefusedRequestError`` when it refuses a request, and ``BudgetSpentError`` once
    ``token_budget`` tokens were spent since the start.
    """

    def __init__(
        self,
        model: str,
        *,
        endpoint: str,
        concurrent_calls: int = 16,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        token_budget: int | None = None,
    ) -> None:
        self._model = model
        self._endpoint = endpoint
        self._limits = Limits(concurrent_calls, requests_per_minute, tokens_per_minute, token_budget)
        self._client: EndpointClient
        self._continues_prefix = True
        self._top_logprobs = 0  # None to be had: choices are read from structured output.

    async def start(self) -> None:
        """Ask for single tokens, to learn what the endpoint can do. Raises ``ConnectionError`` when it is not there."""
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._client = EndpointClient(self._model, self._endpoint, key, self._limits)
        asked = [{"role": "user", "content": "Hi"}]
        # What one provider refuses with 400, another forbids with 403 or fails at with 500.
        try:
            await self._client.complete([*asked, _turn("He")], {"max_tokens": 1} | _continued())
        except (RefusedRequestError, NotServedError):
            self._continues_prefix = False
            await self._client.complete(asked, {"max_tokens": 1})
        for wanted in _TOP_LOGPROBS:
            try:
                reply = await self._client.complete(asked, _first_token(wanted))
            except (RefusedRequestError, NotServedError):
                continue
            if reply.first_token:
                self._top_logprobs = wanted
                return
        logger.warning(
            "the endpoint gives no log-probs: labels are what the model writes, without a probability of its own",
            extra={"endpoint": self._endpoint, "model": self._model},
        )

    async def stop(self) -> None:
        """Close the connections."""
        if hasattr(self, "_client"):
            await self._client.close()

    async def sleep(self) -> None:
        """Nothing of it is on this machine."""

    async def wake(self) -> None:
        """Nothing was freed."""

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
            reply = await self._answer(prompts[prompt_index], parameters)
            return GeneratedSample(
                prompt_index=prompt_index,
                sample_index=sample_index,
                text=reply.text,
                token_ids=(),
                logprobs=(),
                finish=Finish.LENGTH if reply.cut_off else Finish.EOS,
                version_spans=(),
                prompt_token_ids=(),
                counted_tokens=_usage(reply),
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
        """Log-probs of each choice among the likeliest next tokens, white space around a token left out.

        A choice that is not among them gets minus infinity: its probability is below every one of theirs. Without
        log-probs the one that the model writes gets 0 and the others minus infinity; all do when it writes none.
        """
        read = self._first_token if self._top_logprobs else self._written
        tasks = [asyncio.create_task(read(prompt, choices)) for prompt in prompts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # After an error the rest would only cost tokens.
            for task in tasks:
                task.cancel()

    async def _first_token(self, prompt: Prompt, choices: Sequence[str]) -> ChoiceLogprobs:
        reply = await self._answer(prompt, _first_token(self._top_logprobs))
        if not reply.first_token:
            raise RefusedRequestError(f"{self._endpoint} gave no log-probs this time")
        mass = dict.fromkeys(choices, 0.0)
        for token, logprob in reply.first_token:
            if token.strip() in mass:
                mass[token.strip()] += math.exp(logprob)
        return ChoiceLogprobs(tuple(math.log(p) if p else -math.inf for p in mass.values()), *_usage(reply))

    async def _written(self, prompt: Prompt, choices: Sequence[str]) -> ChoiceLogprobs:
        """The choice that the model writes as structured output. The schema takes the place of the prefix."""
        asked = f"\n\nAnswer as JSON with the one key `answer`, which is one of: {', '.join(choices)}."
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        turns[-1]["content"] += asked
        reply = await self._client.complete(turns, _structured(choices))
        chosen = _chosen(reply.text)
        logprobs = tuple(0.0 if choice == chosen else -math.inf for choice in choices)
        return ChoiceLogprobs(logprobs, *_usage(reply), written=True)

    async def answer_loglikelihoods(
        self, items: Sequence[tuple[Prompt, str]]
    ) -> list[AnswerLogLikelihood | ContextTooLongError]:
        """Not to be had from the chat-completions API: raises ``RefusedRequestError``."""
        raise RefusedRequestError("an OpenAI-compatible endpoint gives no log-likelihood of a given answer")

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Not to be had: raises ``RefusedRequestError``."""
        raise RefusedRequestError("the weights of an endpoint cannot be replaced")

    async def _answer(self, prompt: Prompt, parameters: dict[str, Any]) -> Reply:
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        if prompt.assistant_prefix and self._continues_prefix:
            return await self._client.complete([*turns, _turn(prompt.assistant_prefix)], parameters | _continued())
        if prompt.assistant_prefix:
            asked = f"\n\nYour answer begins with: {prompt.assistant_prefix}\nWrite only what follows that beginning."
            turns[-1] = turns[-1] | {"content": turns[-1]["content"] + asked}
        return await self._client.complete(turns, parameters)


def _turn(prefix: str) -> dict[str, str]:
    return {"role": "assistant", "content": prefix}


def _continued() -> dict[str, Any]:
    """Parameters by which vLLM and SGLang continue the last turn instead of opening a new one."""
    return {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}


def _first_token(top_logprobs: int) -> dict[str, Any]:
    return {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": top_logprobs}


def _structured(choices: Sequence[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(choices)}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {"max_tokens": _WRITTEN_TOKENS, "temperature": 0.0, "response_format": form}


def _chosen(text: str) -> str | None:
    """The answer in the JSON that the model wrote; None when it is something else."""
    try:
        written = json.loads(text)
    except ValueError:
        return None
    return written.get("answer") if isinstance(written, dict) else None


def _usage(reply: Reply) -> tuple[int, int]:
    """Tokens of prompt and answer, as far as the endpoint tells."""
    return (reply.usage.prompt_tokens, reply.usage.completion_tokens) if reply.usage else (0, 0)

"""Any OpenAI-compatible endpoint as an engine, for the judge: text and probabilities of answer tokens only."""

import json
import logging
import math
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from charter.inference.concurrent import as_finished, results
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
    ScoredPrompt,
)
from charter.inference.system_text import moved_to_user

logger = logging.getLogger("charter.inference")

# As many alternatives as the API gives, and as many as more modest endpoints give.
_TOP_LOGPROBS = (20, 5)
# A choice as JSON, with room for models that write white space.
_WRITTEN_TOKENS = 32
# A text in two lengths, to see whether the longer one is read.
_SHORT_TEXT, _LONG_TEXT = "Be kind. ", "Be kind. " * 32

Turns = list[dict[str, str]]


class OpenAIEngine:
    """Speaks the chat-completions API. The key is read from ``OPENAI_API_KEY``.

    ``assistant_prefix`` is continued where the endpoint can do that (vLLM, SGLang); elsewhere the model is asked to
    write only what follows it. Where the endpoint gives no log-probs, choices are read from structured output
    (a JSON schema) and marked as ``written``. System turns that the endpoint leaves out, or does not show to be read,
    are put before the next user message. Every method raises ``ConnectionError`` when the endpoint cannot be reached
    or does not serve, ``RefusedRequestError`` when it refuses a request, and ``BudgetSpentError`` once
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
        self._reads_system = False
        self._leaves_out_earlier = False

    async def start(self) -> None:
        """Ask for single tokens, to learn what the endpoint can do. Raises ``ConnectionError`` when it is not there."""
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._client = EndpointClient(self._model, self._endpoint, key, self._limits)
        # What one provider refuses with 400, another forbids with 403 or fails at with 500.
        try:
            await self._client.complete([_ASKED, _turn("assistant", "He")], {"max_tokens": 1} | _continued())
        except (RefusedRequestError, NotServedError):
            self._continues_prefix = False
            await self._client.complete([_ASKED], {"max_tokens": 1})
        self._top_logprobs = await self._most_top_logprobs()
        if self._top_logprobs == 0:
            self._warn("gives no log-probs: labels are what the model writes, without a probability of its own")
        await self._learn_what_it_reads()

    async def _learn_what_it_reads(self) -> None:
        reads_earlier: bool | None = None
        # Some report a number that counts nothing.
        if await self._reads(lambda text: [_turn("user", text)]):
            self._reads_system = bool(await self._reads(lambda text: [_turn("system", text), _ASKED]))
            reads_earlier = await self._reads(lambda text: [_ASKED, _turn("assistant", text), _ASKED])
            self._leaves_out_earlier = reads_earlier is False
        if not self._reads_system:
            self._warn("does not show that its model reads system turns: they are put before the next user message")
        if reads_earlier is None:
            self._warn("does not show whether its model reads the earlier turns of a conversation")

    async def _most_top_logprobs(self) -> int:
        for wanted in _TOP_LOGPROBS:
            try:
                reply = await self._client.complete([_ASKED], _first_token(wanted))
            except (RefusedRequestError, NotServedError):
                continue
            if reply.first_token:
                return wanted
        return 0

    async def _reads(self, conversation: Callable[[str], Turns]) -> bool | None:
        """Whether a text in a conversation reaches the model: a longer one must then be counted as more tokens.

        None where the endpoint refuses the conversation or does not count. Two lengths, because a template may put a
        system text of its own in the place of none.
        """
        counts = []
        for text in (_SHORT_TEXT, _LONG_TEXT):
            try:
                reply = await self._client.complete(conversation(text), {"max_tokens": 1})
            except (RefusedRequestError, NotServedError):
                return None
            counts.append(_usage(reply)[0])
        return counts[1] > counts[0] if all(counts) else None

    def _warn(self, what: str) -> None:
        logger.warning("the endpoint %s", what, extra={"endpoint": self._endpoint, "model": self._model})

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
        return EngineInfo(self._model, "openai", 0, "", 0, 0, "an endpoint has the only copy of its model")

    async def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        samples_per_prompt: int = 1,
        on_text: OnText | None = None,
    ) -> AsyncGenerator[GeneratedSample, None]:
        """Sample answers, each yielded when it is there. They have text only: no token ids, no log-probs.

        A judge needs no more: raises ``RefusedRequestError`` for ``on_text`` and whatever else it does not ask for.
        """
        if on_text is not None:
            raise RefusedRequestError("engine openai does not stream text")
        if sampling.max_new_tokens is None or sampling.stop or sampling.top_logprobs is not None:
            raise RefusedRequestError("engine openai needs max_new_tokens, and takes no stop texts and no top_logprobs")

        async def sample(prompt_index: int, sample_index: int) -> GeneratedSample:
            parameters: dict[str, Any] = {
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
            }
            if (seed := sampling.sample_seed(prompts[prompt_index], prompt_index, sample_index)) is not None:
                parameters["seed"] = seed
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
                counted_tokens=_usage(reply) if reply.usage else None,
            )

        requests = [
            sample(prompt_index, sample_index)
            for prompt_index in range(len(prompts))
            for sample_index in range(samples_per_prompt)
        ]
        async with aclosing(as_finished(requests)) as samples:
            async for one in samples:
                yield one

    async def choice_logprobs(
        self, prompts: Sequence[Prompt], choices: Sequence[str]
    ) -> list[ChoiceLogprobs | ContextTooLongError]:
        """Log-probs of each choice among the likeliest next tokens, white space around a token left out.

        A choice that is not among them gets minus infinity: its probability is below every one of theirs. Without
        log-probs the one that the model writes gets 0 and the others minus infinity; all do when it writes none.
        """
        read = self._first_token if self._top_logprobs else self._written
        return await results(read(prompt, choices) for prompt in prompts)

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
        turns = self._turns(prompt)
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

    async def score_prompts(
        self, prompts: Sequence[Prompt], top_logprobs: int
    ) -> list[ScoredPrompt | ContextTooLongError]:
        """Not to be had from the chat-completions API: raises ``RefusedRequestError``."""
        raise RefusedRequestError("an OpenAI-compatible endpoint gives no log-probs of a given prompt")

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Not to be had: raises ``RefusedRequestError``."""
        raise RefusedRequestError("the weights of an endpoint cannot be replaced")

    async def _answer(self, prompt: Prompt, parameters: dict[str, Any]) -> Reply:
        turns = self._turns(prompt)
        if prompt.assistant_prefix and self._continues_prefix:
            return await self._client.complete(
                [*turns, _turn("assistant", prompt.assistant_prefix)], parameters | _continued()
            )
        if prompt.assistant_prefix:
            asked = f"\n\nYour answer begins with: {prompt.assistant_prefix}\nWrite only what follows that beginning."
            turns[-1] = turns[-1] | {"content": turns[-1]["content"] + asked}
        return await self._client.complete(turns, parameters)

    def _turns(self, prompt: Prompt) -> Turns:
        if prompt.as_user:
            raise RefusedRequestError(f"{self._endpoint} writes answers only, and not what a user says")
        if prompt.text or prompt.raw is not None:
            raise RefusedRequestError("the chat-completions API goes on with no plain text")
        messages = moved_to_user(prompt.messages, at_start=not self._reads_system, later=True, name=self._endpoint)
        if self._leaves_out_earlier and len([one for one in messages if one.role != "system"]) > 1:
            raise RefusedRequestError(
                f"{self._endpoint} leaves out the earlier turns of a conversation (it counts as many tokens whatever "
                "they say): use an endpoint that passes them on, or a constitution without examples and no reasoning"
            )
        return [{"role": message.role, "content": message.content} for message in messages]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


_ASKED = _turn("user", "Hi")


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

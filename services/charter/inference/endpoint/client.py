"""Calls of one OpenAI-compatible endpoint: side by side within its limits, tried again where that can help."""

import asyncio
import email.utils
import random
import time
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import openai
from openai import AsyncOpenAI

from charter.inference.endpoint import metrics
from charter.inference.endpoint.limits import CircuitBreaker, MinuteQuota, TokenBudget
from charter.inference.endpoint.reply import Reply, read_reply
from charter.inference.engine import RefusedRequestError

# Seconds for one answer.
_TIMEOUT = 120.0
_TRIES = 5
# Pauses before the tries after the first: random, up to 0.5, 1, 2, 4 seconds, so that callers do not come in step.
_FIRST_PAUSE = 0.5
# An endpoint that asks for a longer pause is not waited for.
_LONGEST_PAUSE = 60.0
# Calls in a row that failed after all their tries, and how long the endpoint is then left alone.
_BREAKER_FAILURES = 8
_BREAKER_SECONDS = 30.0
# Of English text; too low an estimate of a call's tokens is corrected when its usage is known.
_CHARACTERS_PER_TOKEN = 3.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What the endpoint may be asked; None is no bound."""

    concurrent_calls: int = 16
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    token_budget: int | None = None

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a bound that allows nothing."""
        for name in ("concurrent_calls", "requests_per_minute", "tokens_per_minute", "token_budget"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number above 0, not {value!r}")


class NotServedError(ConnectionError):
    """The endpoint is there and answered with an error: for its model, for this key, or for what was asked."""


class EndpointClient:
    """Completes chats.

    Tries again, up to four times, after 429, 5xx and failed connections only: after the pause that the endpoint asks
    for, else a random one that grows. Every try counts in the quotas. ``budget`` counts the tokens that the endpoint
    reports.
    """

    def __init__(self, model: str, url: str, key: str, limits: Limits) -> None:
        self._model = model
        self._url = url
        # Retries are ours: each must pass the quotas, and give its place to others while it pauses.
        self._http = AsyncOpenAI(base_url=url, api_key=key, timeout=_TIMEOUT, max_retries=0)
        self._places = asyncio.Semaphore(limits.concurrent_calls)
        self._requests = MinuteQuota(limits.requests_per_minute) if limits.requests_per_minute else None
        self._tokens = MinuteQuota(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._breaker = CircuitBreaker(_BREAKER_FAILURES, _BREAKER_SECONDS)
        self.budget = TokenBudget(limits.token_budget)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def complete(self, messages: list[dict[str, str]], parameters: dict[str, Any]) -> Reply:
        """One completion.

        Raises ``RefusedRequestError`` when the endpoint refuses the request, ``ConnectionError`` when it cannot be
        reached, does not serve (``NotServedError``) or replies with something else, ``BudgetSpentError`` when the
        budget is spent.
        """
        attempt = 1
        while True:
            try:
                reply = await self._try(messages, parameters)
            except openai.APIError as error:
                passing = _passing(error)
                pause = _pause(error, attempt) if passing and attempt < _TRIES else None
                if pause is None:
                    if passing and not _limited(error):
                        self._breaker.failed()
                    metrics.CIRCUIT_OPEN.set(self._breaker.open)
                    raise self._explained(error) from error
            else:
                self._breaker.succeeded()
                metrics.CIRCUIT_OPEN.set(0)
                return reply
            await asyncio.sleep(pause)
            attempt += 1

    async def _try(self, messages: list[dict[str, str]], parameters: dict[str, Any]) -> Reply:
        estimate = sum(len(turn["content"]) for turn in messages) / _CHARACTERS_PER_TOKEN + parameters["max_tokens"]
        async with self._places:
            if self._requests:
                await self._requests.take(1)
            taken = await self._tokens.take(estimate) if self._tokens else None
            # Here, after the waiting: what the others found while this one waited counts.
            self.budget.check()
            if wait := self._breaker.seconds_to_wait():
                raise ConnectionError(
                    f"the endpoint {self._url} failed {_BREAKER_FAILURES} calls in a row and is left alone for "
                    f"{wait:.0f} more seconds"
                )
            try:
                response = await self._http.chat.completions.with_raw_response.create(
                    model=self._model,
                    messages=messages,  # type: ignore[arg-type]
                    **parameters,
                )
            except openai.APIError as error:
                metrics.REQUESTS.labels(_result(error)).inc()
                raise
        metrics.REQUESTS.labels("answered").inc()
        reply = read_reply(response.content)
        if reply is None:
            raise ConnectionError(
                f"the endpoint {self._url} did not answer with a chat completion. Is it the base URL of the API? "
                "It often ends with /v1"
            )
        self._count(reply)
        if self._tokens and taken and reply.usage:
            self._tokens.settle(taken, reply.usage.total_tokens)
        return reply

    def _count(self, reply: Reply) -> None:
        if reply.usage:
            self.budget.spent += reply.usage.total_tokens
        elif self.budget.most is not None:
            raise ConnectionError(f"the endpoint {self._url} reports no usage, so that token_budget cannot be kept")
        if self.budget.most is not None:
            metrics.BUDGET_TOKENS.labels(self._model).set(max(0, self.budget.most - self.budget.spent))

    def _explained(self, error: openai.APIError) -> Exception:
        if isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422):
            return RefusedRequestError(f"{self._url} refused the request: {error}")
        text = (
            f"the endpoint {self._url} does not serve {self._model}: {error}. Is it running, is the model's "
            "name right, and OPENAI_API_KEY set if it needs a key?"
        )
        return NotServedError(text) if isinstance(error, openai.APIStatusError) else ConnectionError(text)


def _passing(error: openai.APIError) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, openai.APIStatusError):
        # Providers answer 429 for an empty account too; that does not pass.
        return error.status_code >= 500 or (_limited(error) and error.code != "insufficient_quota")
    return isinstance(error, openai.APIConnectionError)


def _limited(error: openai.APIError) -> bool:
    return isinstance(error, openai.APIStatusError) and error.status_code == 429


def _result(error: openai.APIError) -> str:
    if _limited(error):
        return "limited"
    return "failed" if _passing(error) else "refused"


def _pause(error: openai.APIError, attempt: int) -> float | None:
    """Seconds to wait after this attempt, counted from 1; None when the endpoint asks for too long a pause."""
    jitter = random.uniform(0, _FIRST_PAUSE * 2 ** (attempt - 1))
    asked = retry_after(error.response.headers) if isinstance(error, openai.APIStatusError) else None
    if asked is None:
        return jitter
    # The endpoint names one moment to everybody: some jitter keeps them from coming all at once.
    return asked + min(jitter, asked) if asked <= _LONGEST_PAUSE else None


def retry_after(headers: Any) -> float | None:
    """Seconds that a response asks to wait: Retry-After in seconds or as a date (RFC 9110, section 10.2.3), or its
    form in milliseconds that some endpoints send. None when it asks for nothing that can be read.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * scale)
        except (KeyError, ValueError):
            continue
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())

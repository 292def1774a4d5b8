"""What an endpoint replied: read part by part, so that what is odd about one part costs that part alone."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter, ValidationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a call has cost, as the endpoint counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A completed chat. ``first_token`` are the likeliest first tokens and their log-probs, none without log-probs."""

    text: str
    cut_off: bool
    # None where the endpoint does not tell.
    usage: Usage | None
    first_token: tuple[tuple[str, float], ...]


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None


class _Completion(BaseModel):
    choices: Annotated[list[Any], Field(min_length=1)]
    usage: Any = None


class _Counts(BaseModel):
    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    total_tokens: NonNegativeInt | None = None


class _Token(BaseModel):
    token: str
    logprob: Annotated[float, Field(allow_inf_nan=False)]


class _Position(BaseModel):
    top_logprobs: list[_Token]


class _Logprobs(BaseModel):
    content: Annotated[list[_Position], Field(min_length=1)]


def read_reply(body: bytes) -> Reply | None:
    """The first choice of a chat completion, or None when the body is something else."""
    try:
        content = json.loads(body)
    except ValueError:
        return None
    completion = _as(_Completion, content)
    choice = _as(_Choice, completion.choices[0]) if completion is not None else None
    if completion is None or choice is None:
        return None
    logprobs = _as(_Logprobs, choice.logprobs)
    return Reply(
        text=choice.message.content or "",
        cut_off=choice.finish_reason == "length",
        usage=_usage(completion.usage),
        first_token=tuple((one.token, one.logprob) for one in logprobs.content[0].top_logprobs) if logprobs else (),
    )


def _usage(value: Any) -> Usage | None:
    counts = _as(_Counts, value)
    if counts is None or (counts.prompt_tokens is None and counts.total_tokens is None):
        return None
    prompt, completion = counts.prompt_tokens or 0, counts.completion_tokens or 0
    return Usage(prompt, completion, prompt + completion if counts.total_tokens is None else counts.total_tokens)


def _as(kind: type[T], value: Any) -> T | None:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None

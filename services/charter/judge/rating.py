"""Score: one answer rated from 1 to 10, as the expectation over the rating's tokens.

Direct RLAIF of Lee et al. 2023 (arXiv 2309.00267), section 2.2.2: ``s = sum i P(i)`` over the ten ratings renormalised,
mapped from [1, 10] to [-1, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from charter.chat import ChatMessage
from charter.inference.engine import ChoiceLogprobs, ContextTooLongError, Engine, Prompt, RefusedRequestError
from charter.judge.options import mass_failure
from charter.judge.pairs import Usage, too_long, total, transcript
from charter.spec.constitution import Principle
from charter.v1 import types_pb2

_DIGITS = tuple("123456789")
_TEN = "10"
# Ends with a space: tokenizers keep digits apart from the space before them.
_PREFIX = "Rating: "

Result = ChoiceLogprobs | ContextTooLongError


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """One answer to rate under one principle."""

    prompt: tuple[ChatMessage, ...]
    answer: str
    principle: Principle


@dataclass(frozen=True, slots=True)
class Rating:
    """P(rating = i + 1), ten numbers that add to 1, or why there are none."""

    distribution: tuple[float, ...] = ()
    failure: str = ""
    kind: types_pb2.FailureKind.ValueType = types_pb2.FAILURE_KIND_UNSPECIFIED
    usage: Usage = field(default_factory=Usage)
    # The model wrote a rating, and gave no log-probs: the distribution is that one number.
    written: bool = False

    @property
    def score(self) -> float:
        """The expected rating, mapped from [1, 10] to [-1, 1]."""
        expected = sum((index + 1) * probability for index, probability in enumerate(self.distribution))
        return (expected - 1.0) / 4.5 - 1.0


async def rate(engine: Engine, answers: Sequence[RatedAnswer]) -> list[Rating]:
    """Rate each answer with one call, or two where "10" is more than one token."""
    asked = [answer for answer in answers if answer.answer.strip()]
    ratings = iter(await _rate(engine, asked))
    empty = Rating(failure="the answer is empty", kind=types_pb2.FAILURE_KIND_EMPTY)
    return [next(ratings) if answer.answer.strip() else empty for answer in answers]


def mean_rating(ratings: Sequence[Rating]) -> Rating:
    """One answer's rating under several principles: their mean, or the failure of one of them.

    Without one of its principles an answer would not compare with others of its group.
    """
    usage = total(*(one.usage for one in ratings))
    for one in ratings:
        if one.failure:
            return replace(one, usage=usage)
    distribution = tuple(map(fmean, zip(*(one.distribution for one in ratings), strict=True)))
    return Rating(distribution, usage=usage, written=any(one.written for one in ratings))


async def _rate(engine: Engine, answers: Sequence[RatedAnswer]) -> list[Rating]:
    if not answers:
        return []
    prompts = [_prompt(answer) for answer in answers]
    try:
        return [_rating(result) for result in await _ask(engine, prompts)]
    except ConnectionError as error:
        failure = f"the judge's model cannot be reached: {error}"
        return [Rating(failure=failure, kind=types_pb2.FAILURE_KIND_UNAVAILABLE) for _ in answers]
    except RefusedRequestError as error:
        if len(answers) == 1:
            return [Rating(failure=str(error), kind=types_pb2.FAILURE_KIND_REFUSED)]
        return [(await _rate(engine, [answer]))[0] for answer in answers]


async def _ask(engine: Engine, prompts: Sequence[Prompt]) -> list[Result]:
    try:
        return await engine.choice_logprobs(prompts, (*_DIGITS, _TEN))
    except RefusedRequestError:
        raise
    except ValueError:
        # "10" is not one token here: the digits first, then whether a zero follows the one.
        first = await engine.choice_logprobs(prompts, _DIGITS)
        after_one = [Prompt(prompt.messages, _PREFIX + _DIGITS[0]) for prompt in prompts]
        second = await engine.choice_logprobs(after_one, ("0",))
        return [_with_ten(one, two) for one, two in zip(first, second, strict=True)]


def _prompt(rated: RatedAnswer) -> Prompt:
    text = (
        f"Here is a conversation between a user and an assistant.\n\n{transcript(rated.prompt)}\n\n"
        f"Assistant: {rated.answer}\n\nThe assistant was told: {rated.principle.follow}\n"
        "How well did it do this in its last response? "
        "Answer with one whole number from 1 (not at all) to 10 (perfectly)."
    )
    return Prompt((ChatMessage("user", text),), _PREFIX)


def _with_ten(digits: Result, zero: Result) -> Result:
    """Split the probability of a first "1" into 1 and 10 by the probability that "0" follows."""
    if isinstance(digits, ContextTooLongError):
        return digits
    if isinstance(zero, ContextTooLongError):
        return zero
    one, rest, ten_after_one = digits.logprobs[0], digits.logprobs[1:], zero.logprobs[0]
    alone = one + math.log1p(-min(math.exp(ten_after_one), 1.0 - 1e-12))
    return ChoiceLogprobs((alone, *rest, one + ten_after_one), digits.prompt_tokens + zero.prompt_tokens)


def _rating(result: Result) -> Rating:
    if isinstance(result, ContextTooLongError):
        return Rating(failure=too_long(result), kind=types_pb2.FAILURE_KIND_TOO_LONG)
    usage = Usage(result.prompt_tokens, result.completion_tokens)
    if failure := mass_failure(result, (*_DIGITS, _TEN)):
        return Rating(failure=failure, kind=types_pb2.FAILURE_KIND_UNCLEAR, usage=usage)
    weights = [math.exp(logprob) for logprob in result.logprobs]
    mass = math.fsum(weights)
    return Rating(tuple(weight / mass for weight in weights), usage=usage, written=result.written)

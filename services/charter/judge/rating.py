"""Score: one answer rated from 1 to 10, as the expectation over the rating's tokens.

Direct RLAIF of Lee et al. 2023 (arXiv 2309.00267), section 2.2.2: ``s = sum i P(i)`` over the ten ratings renormalised,
mapped from [1, 10] to [-1, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import TypeVar

from charter.chat import ChatMessage
from charter.inference.engine import ChoiceLogprobs, ContextTooLongError, Engine, Prompt, RefusedRequestError
from charter.judge.asking import ask_each, in_words
from charter.judge.options import mass_failure, options_mass
from charter.judge.pairs import Usage, quoted, too_long, total, transcript
from charter.spec.constitution import Principle
from charter.v1 import types_pb2

_DIGITS = tuple("123456789")
_TEN = "10"
_PREFIX = "Rating: "
# Where 10 is not one token, a first "1" of at least this probability is split into 1 and 10. Below it the score would
# move by less than 0.002.
_LEAST_ONE = 1e-3

Result = ChoiceLogprobs | ContextTooLongError


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """One answer to rate under one principle."""

    prompt: tuple[ChatMessage, ...]
    answer: str
    principle: Principle


@dataclass(frozen=True, slots=True)
class Told:
    """Probabilities of what may be said of an answer, which add to 1, or why there are none."""

    distribution: tuple[float, ...] = ()
    failure: str = ""
    kind: types_pb2.FailureKind.ValueType = types_pb2.FAILURE_KIND_UNSPECIFIED
    usage: Usage = field(default_factory=Usage)
    # The model wrote one of them, and gave no log-probs: that one has all of the probability.
    written: bool = False


T = TypeVar("T", bound=Told)


@dataclass(frozen=True, slots=True)
class Rating(Told):
    """P(rating = i + 1), ten numbers."""

    # Probability of the ratings in all, where that was too little.
    mass: float = 1.0

    @property
    def score(self) -> float:
        """The expected rating, mapped from [1, 10] to [-1, 1]."""
        expected = sum((index + 1) * probability for index, probability in enumerate(self.distribution))
        return (expected - 1.0) / 4.5 - 1.0


async def rate(engine: Engine, answers: Sequence[RatedAnswer]) -> list[Rating]:
    """Rate each answer with one call, or two where "10" is more than one token.

    Raises ``ValueError`` when the digits are no tokens of their own.
    """
    asked = [answer for answer in answers if answer.answer.strip()]
    found = await ask_each(
        partial(_rate, engine), asked, lambda error, kind: Rating(failure=in_words(error), kind=kind)
    )
    ratings = iter(found)
    empty = Rating(failure="the answer is empty", kind=types_pb2.FAILURE_KIND_EMPTY)
    return [next(ratings) if answer.answer.strip() else empty for answer in answers]


def mean_of(found: Sequence[T]) -> T:
    """What is said of one answer under several principles: their mean, or the failure of one of them.

    Without one of its principles an answer would not compare with others of its group.
    """
    usage = total(*(one.usage for one in found))
    for one in found:
        if one.failure:
            return replace(one, usage=usage)
    distribution = tuple(map(fmean, zip(*(one.distribution for one in found), strict=True)))
    return replace(found[0], distribution=distribution, usage=usage, written=any(one.written for one in found))


async def _rate(engine: Engine, answers: Sequence[RatedAnswer]) -> list[Rating]:
    return [_rating(result) for result in await _results(engine, [_prompt(answer) for answer in answers])]


async def _results(engine: Engine, prompts: Sequence[Prompt]) -> list[Result]:
    """Log-probs of the ten ratings. Where "10" is no token, whether a zero follows the one is asked too."""
    try:
        results = await engine.choice_logprobs(prompts, (*_DIGITS, _TEN))
    except RefusedRequestError:
        raise
    except ValueError:
        results = [_without_ten(result) for result in await engine.choice_logprobs(prompts, _DIGITS)]
    # An endpoint does not say which tokens its model has: there 10 is only missing among the likeliest.
    begun = [place for place, result in enumerate(results) if _may_be_ten(result)]
    if begun:
        after_one = [Prompt(prompts[place].messages, _PREFIX + _DIGITS[0]) for place in begun]
        for place, zero in zip(begun, await engine.choice_logprobs(after_one, ("0",)), strict=True):
            results[place] = _with_ten(results[place], zero)
    return results


def _without_ten(result: Result) -> Result:
    return replace(result, logprobs=(*result.logprobs, -math.inf)) if isinstance(result, ChoiceLogprobs) else result


def _may_be_ten(result: Result) -> bool:
    if isinstance(result, ContextTooLongError) or result.written:
        return False
    return result.logprobs[-1] == -math.inf and math.exp(result.logprobs[0]) >= _LEAST_ONE


def _prompt(rated: RatedAnswer) -> Prompt:
    text = (
        f"Here is a conversation between a user and an assistant.\n\n{transcript(rated.prompt)}\n\n"
        f"Assistant: {quoted(rated.answer)}\n\nThe assistant was told: {rated.principle.follow}\n"
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
    one, rest, ten_after_one = digits.logprobs[0], digits.logprobs[1:-1], zero.logprobs[0]
    alone = one + math.log1p(-min(math.exp(ten_after_one), 1.0 - 1e-12))
    return replace(
        digits,
        logprobs=(alone, *rest, one + ten_after_one),
        prompt_tokens=digits.prompt_tokens + zero.prompt_tokens,
        completion_tokens=digits.completion_tokens + zero.completion_tokens,
    )


def _rating(result: Result) -> Rating:
    if isinstance(result, ContextTooLongError):
        return Rating(failure=too_long(result), kind=types_pb2.FAILURE_KIND_TOO_LONG)
    usage = Usage(result.prompt_tokens, result.completion_tokens)
    if failure := mass_failure(result, (*_DIGITS, _TEN)):
        return Rating(failure=failure, kind=types_pb2.FAILURE_KIND_UNCLEAR, usage=usage, mass=options_mass(result))
    weights = [math.exp(logprob) for logprob in result.logprobs]
    mass = math.fsum(weights)
    return Rating(tuple(weight / mass for weight in weights), usage=usage, written=result.written)

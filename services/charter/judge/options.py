"""Reading an answer from the probabilities of option tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from charter.inference.engine import ChoiceLogprobs, ContextTooLongError, Engine, Prompt
from charter.judge.pairs import Usage, too_long
from charter.v1 import types_pb2

# Below this mass the model would have said something else than one of the options; reading it would be noise.
LEAST_MASS = 0.05
# Log-prob of an option that an endpoint does not list among its likeliest tokens, or that the model did not write where
# only that can be read: evidence stays finite.
UNLISTED = -20.0


@dataclass(frozen=True, slots=True)
class Odds:
    """Log-odds of the first option against the second in nats, or why there are none."""

    logit: float = 0.0
    failure: str = ""
    kind: types_pb2.FailureKind.ValueType = types_pb2.FAILURE_KIND_UNSPECIFIED
    usage: Usage = field(default_factory=Usage)
    # The model wrote an option, and gave no log-probs.
    written: bool = False
    # Probability of the options in all, where that was too little.
    mass: float = 1.0


async def log_odds(engine: Engine, prompts: Sequence[Prompt], options: tuple[str, str]) -> list[Odds]:
    """Odds of the two option tokens after each prompt; equal prompts are asked once."""
    unique = list(dict.fromkeys(prompts))
    found = dict(zip(unique, await engine.choice_logprobs(unique, options), strict=True))
    return [_odds(found[prompt], options) for prompt in prompts]


def options_mass(found: ChoiceLogprobs) -> float:
    """Probability of the options in all."""
    return math.fsum(math.exp(logprob) for logprob in found.logprobs)


def mass_failure(found: ChoiceLogprobs, options: Sequence[str]) -> str:
    """Why the log-probs of the options cannot be read; empty when they can."""
    mass = options_mass(found)
    if mass >= LEAST_MASS:
        return ""
    if found.written:
        return f"the model wrote none of the options {', '.join(options)}"
    return f"the model gives the options {', '.join(options)} a probability of {mass:.2g} in all, below {LEAST_MASS}"


def _odds(result: ChoiceLogprobs | ContextTooLongError, options: tuple[str, str]) -> Odds:
    if isinstance(result, ContextTooLongError):
        return Odds(failure=too_long(result), kind=types_pb2.FAILURE_KIND_TOO_LONG)
    usage = Usage(result.prompt_tokens, result.completion_tokens)
    if failure := mass_failure(result, options):
        kind = types_pb2.FAILURE_KIND_UNCLEAR
        return Odds(failure=failure, kind=kind, usage=usage, written=result.written, mass=options_mass(result))
    first, second = (max(logprob, UNLISTED) for logprob in result.logprobs)
    return Odds(logit=first - second, usage=usage, written=result.written)

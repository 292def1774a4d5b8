"""How likely a model's answers are under the start model: what training has led away from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from charter.evaluation.statistics import LEVEL, Estimate, NotIdentifiedError, numbered


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """Log-prob of an answer in all, in nats, and of how many tokens it is; ``nats`` is the negative of the log-prob."""

    prompt: str
    nats: float
    tokens: int


def nats_per_token(answers: Sequence[ScoredAnswer]) -> Estimate:
    """Cross-entropy of a model's answers under the start, in nats per token: the log of their perplexity.

    All tokens count alike. The interval is that of a ratio of two sums over prompts (Cochran 1977, section 6.3), on the
    log scale, with Student's t: a few unlikely answers spread upwards, where a bootstrap of few prompts is too narrow.

    Raises ``NotIdentifiedError`` where fewer than two prompts have an answer with tokens.
    """
    counted = [one for one in answers if one.tokens]
    places, count = numbered([one.prompt for one in counted])
    if count < 2:
        raise NotIdentifiedError("no perplexity: scored answers with tokens to two prompts or more are needed")
    nats = np.bincount(places, [one.nats for one in counted])
    tokens = np.bincount(places, [one.tokens for one in counted])
    value = float(nats.sum() / tokens.sum())
    if value <= 0:
        # All tokens were certain.
        return Estimate(0.0, 0.0, 0.0, count)
    apart = nats - value * tokens
    error = math.sqrt(count / (count - 1) * float(apart @ apart)) / float(tokens.sum())
    factor = math.exp(float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error / value)
    return Estimate(value, value / factor, value * factor, count)

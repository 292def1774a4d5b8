"""What a probability of preference says: A, B or a tie. Every room reads it here, by one tolerance.

A probability is P(answer A is better). All functions are odd under an exchange of the answers, to the last bit.
"""

import math
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from charter.v1 import judge_pb2, types_pb2

# A probability this near to a half prefers neither answer: float32 log-probs of the same text, computed in two batches,
# differ by as much.
TIE_TOLERANCE = 1e-6


def probability_of(log_odds: float, lapse: float = 0.0) -> float:
    """``lapse + (1 - 2 lapse) sigmoid(log_odds)``, such that the values of x and -x add to exactly 1.

    ``lapse`` in [0, 0.5) is the share of labels that are wrong whatever the evidence. The likelier side is computed and
    the other is its complement, which is exact for numbers from 0.5 to 1 (Sterbenz 1974).
    """
    return _from_lead(math.copysign((0.5 - lapse) * math.tanh(abs(log_odds) / 2.0), log_odds))


def mean_probability(probabilities: Iterable[float]) -> float:
    """Their mean, such that the mean of the complements is its exact complement."""
    return _from_lead(fmean(map(lead, probabilities)))


def held_between(probability: float, low: float) -> float:
    """The probability, at least ``low`` and at most ``1 - low``."""
    return _from_lead(max(low - 0.5, min(0.5 - low, lead(probability))))


def lead(probability: Any) -> Any:
    """Distance from a half, above 0 where A is ahead; a number or an array of them."""
    # Not `probability - 0.5`: 1 - p is rounded, and this way the lead of p and that of 1 - p are exact opposites.
    return 0.5 - (1.0 - probability)


def side(probability: Any) -> Any:
    """1 where A is preferred, -1 where B is, 0 for a tie; a number or an array (NumPy, torch) of them."""
    ahead = lead(probability)
    return 1.0 * (ahead > TIE_TOLERANCE) - 1.0 * (ahead < -TIE_TOLERANCE)


def win(probability: Any) -> Any:
    """1 where A is preferred, 0 where B is, 0.5 for a tie; a number or an array of them."""
    return (1.0 + side(probability)) / 2.0


def outcome_of(probability: float) -> types_pb2.Outcome.ValueType:
    """The outcome that a soft label stands for. Raises ``ValueError`` for what is no probability."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"a probability must lie between 0 and 1, got {probability}")
    if side(probability) == 0:
        return types_pb2.OUTCOME_TIE
    return types_pb2.OUTCOME_PREFERRED_A if side(probability) > 0 else types_pb2.OUTCOME_PREFERRED_B


def failure_name(kind: types_pb2.FailureKind.ValueType) -> str:
    """Name of a kind of failure in lower case; ``other`` where a service does not say which."""
    return types_pb2.FailureKind.Name(kind).removeprefix("FAILURE_KIND_").lower() if kind else "other"


def failure_of_judgement(judgement: judge_pb2.Judgement) -> str:
    """Kind of failure for which a pair has no label; empty where it has one."""
    if judgement.HasField("probability_a"):
        return ""
    unavailable = judgement.outcome == types_pb2.OUTCOME_UNAVAILABLE
    return failure_name(types_pb2.FAILURE_KIND_UNAVAILABLE if unavailable else judgement.failure_kind)


def same_position_wins(shown_first: float, shown_second: float) -> bool:
    """Whether a judge chose the same position in both orders, so by the position and not by the answer.

    ``shown_first`` is P(A is better) when A was shown first, ``shown_second`` when it was shown second.
    """
    return bool(side(shown_first) * side(shown_second) < 0)


def _from_lead(ahead: float) -> float:
    likelier = 0.5 + abs(ahead)
    return likelier if ahead >= 0 else 1.0 - likelier

"""Whether the score still means what the judge means: a policy can raise the one while the other falls.

Gao et al. 2023 ("Scaling Laws for Reward Model Overoptimization", arXiv 2210.10760): proxy reward and gold reward part
as the policy moves away from its start, measured as the square root of the KL.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Measurement(NamedTuple):
    """The policy after ``step`` steps on the watched held-out prompts, each a mean over answers."""

    step: int
    # P(the judge prefers its answer to the starting policy's).
    judge: float
    # What training raises; None with online DPO, which has no score.
    score: float | None
    # To the starting policy, estimator k3, in nats per answer.
    kl: float
    # The preference model of the score. The scores of two are on two scales and say nothing of each other.
    preference_version: int = 0
    # What the same preference model says of the answers of the best measurement before; None where it was not asked.
    best_score: float | None = None


def best(measured: Sequence[Measurement]) -> Measurement:
    """The one that the judge likes best, the earliest of equals. ``measured`` is not empty."""
    return max(measured, key=lambda one: (one.judge, -one.step))


def parted(measured: Sequence[Measurement], patience: int) -> bool:
    """Whether in each of the last ``patience`` the score is above that of the best and the judge's opinion is below.

    Both scores are of one preference model, whatever was refreshed since the best one was measured.
    """
    if len(measured) <= patience:
        return False
    top = best(measured)
    return all(one.judge < top.judge and _scores_above(one, top) for one in measured[-patience:])


def _scores_above(one: Measurement, top: Measurement) -> bool:
    of_top = top.score if one.preference_version == top.preference_version else one.best_score
    return one.score is not None and of_top is not None and one.score > of_top

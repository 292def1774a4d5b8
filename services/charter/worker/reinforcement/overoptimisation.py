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


def best(measured: Sequence[Measurement]) -> Measurement:
    """The one that the judge likes best, the earliest of equals. ``measured`` is not empty."""
    return max(measured, key=lambda one: (one.judge, -one.step))


def parted(measured: Sequence[Measurement], patience: int) -> bool:
    """Whether in each of the last ``patience`` the score is above its value at the best and the judge's is below."""
    if len(measured) <= patience:
        return False
    top = best(measured)
    return all(
        one.judge < top.judge and one.score is not None and top.score is not None and one.score > top.score
        for one in measured[-patience:]
    )

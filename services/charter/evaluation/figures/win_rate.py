"""How often one model's answers are preferred to another's, and the same for every pair of models."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from charter.evaluation.figures.rows import Judgement, between
from charter.evaluation.statistics import Estimate, estimate
from charter.outcomes import win

_RATES = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often a policy won. Failed judgements are counted and in no other figure."""

    wins: int
    ties: int
    losses: int
    failures: int
    # Mean of 1 for a win, 0.5 for a tie, 0 for a loss.
    win_rate: Estimate
    # Mean of the probabilities themselves: the soft win rate.
    mean_probability: Estimate

    def turned(self) -> "WinRate":
        """That of the other policy."""
        return WinRate(
            self.losses,
            self.ties,
            self.wins,
            self.failures,
            _complement(self.win_rate),
            _complement(self.mean_probability),
        )


def win_rate(
    probabilities: Sequence[float | None],
    groups: Sequence[Hashable] | None = None,
    *,
    samples: int,
    seed: int,
) -> WinRate:
    """Wins, ties and losses of judgements, ties as half a win.

    Args:
        probabilities: [n], P(the new policy's answer is better), None for a failed judgement.
        groups: [n], what each judgement shares with others, such as its prompt; None makes each its own.
        samples: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: every judgement failed, a probability is outside [0, 1], or lengths differ.
    """
    if groups is not None and len(groups) != len(probabilities):
        raise ValueError(f"{len(probabilities)} probabilities but {len(groups)} groups")
    judged = [(i, p) for i, p in enumerate(probabilities) if p is not None]
    if not judged:
        raise ValueError(f"no win rate: all {len(probabilities)} judgements failed")
    soft = np.array([p for _, p in judged])
    if not ((soft >= 0) & (soft <= 1)).all():
        wrong = next(p for p in soft if not 0 <= p <= 1)
        raise ValueError(f"a probability must lie between 0 and 1, got {wrong}")
    of_judged = [i if groups is None else groups[i] for i, _ in judged]
    points = win(soft)
    return WinRate(
        wins=int((points == 1).sum()),
        ties=int((points == 0.5).sum()),
        losses=int((points == 0).sum()),
        failures=len(probabilities) - len(judged),
        win_rate=estimate(points, of_judged, samples=samples, seed=seed, bounds=_RATES),
        mean_probability=estimate(soft, of_judged, samples=samples, seed=seed, bounds=_RATES),
    )


def win_matrix(judgements: Sequence[Judgement], *, samples: int, seed: int) -> dict[tuple[str, str], WinRate]:
    """The win rate of the first model over the second, for every two that were compared, in both directions.

    ``judgements`` are of one judge and one dimension. A pair of which every judgement failed is left out.
    """
    models = sorted({name for one in judgements for name in (one.model_a, one.model_b)})
    found = {}
    for model, against in combinations(models, 2):
        rows = between(judgements, model, against)
        probabilities = [one.probability_a for one in rows]
        if set(probabilities) - {None}:
            rate = win_rate(probabilities, [one.prompt for one in rows], samples=samples, seed=seed)
            found[model, against], found[against, model] = rate, rate.turned()
    return found


def _complement(rate: Estimate) -> Estimate:
    return Estimate(1.0 - rate.value, 1.0 - rate.high, 1.0 - rate.low, rate.prompts)

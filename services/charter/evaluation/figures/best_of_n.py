"""How often a preference model gives the right one of n answers the highest score: RewardBench 2.

Malik et al. 2025, "RewardBench 2" (arXiv 2506.01937, section 3), in its own scoring code (rewardbench/utils.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from charter.evaluation.statistics import Array, Estimate, NotIdentifiedError, estimate, interval_of, prompt_weights

# The subset whose prompts have several right answers, and the prefixes of its ids, as the data set calls them.
TIES = "ties"
_REFERENCE, _TIED = "ref", "tied"


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """Scores of the right and of the wrong answers to a prompt, as ``data.best_of_n`` reads them."""

    id: str
    subset: str
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TiesScore:
    """RewardBench 2's score of prompts with several right answers, and its parts."""

    score: Estimate
    # Every right answer above every wrong one: of prompts with several right ones, and with one.
    tied_accuracy: float
    reference_accuracy: float
    # The right answers are nearer to each other than to the best wrong one: that of the same prompt, and of either.
    margin: float
    margin_hard: float


@dataclass(frozen=True, slots=True)
class BestOfNAccuracy:
    """Accuracy by subset and their mean, in which every subset counts alike."""

    subsets: Mapping[str, Estimate]
    ties: TiesScore | None
    mean: Estimate


def accuracy(rows: Sequence[ScoredAnswers], *, samples: int, seed: int) -> BestOfNAccuracy:
    """Share of prompts whose chosen answer has the highest score; k answers that share it count 1 / k.

    Where several answers are chosen, every one must be above all rejected ones. The subset Ties is scored by
    ``ties_score``.

    Raises ``NotIdentifiedError`` without a row, ``ValueError`` for a score that is not finite.
    """
    if not rows:
        raise NotIdentifiedError("no accuracy: no prompt was scored")
    if not all(np.isfinite([*one.chosen, *one.rejected]).all() for one in rows):
        raise ValueError("scores must be finite: leave what could not be scored out and count it")
    by_subset: dict[str, list[ScoredAnswers]] = {}
    for one in rows:
        by_subset.setdefault(one.subset, []).append(one)
    ties = next((by_subset.pop(name) for name in list(by_subset) if name.lower() == TIES), None)
    subsets = {
        name: estimate(
            [_right(one) for one in part], [one.id for one in part], samples=samples, seed=seed, bounds=(0.0, 1.0)
        )
        for name, part in by_subset.items()
    }
    of_ties = None if ties is None else ties_score(ties, samples=samples, seed=seed)
    return BestOfNAccuracy(subsets, of_ties, _mean([*subsets.values(), *([of_ties.score] if of_ties else [])]))


def by_chance(rows: Sequence[ScoredAnswers]) -> float:
    """The accuracy of scores that are drawn at random: of each prompt, that all its chosen answers come first."""
    return float(np.mean([1 / comb(len(one.chosen) + len(one.rejected), len(one.chosen)) for one in rows]))


def _mean(parts: Sequence[Estimate]) -> Estimate:
    """The mean of figures of different prompts, from their intervals (Zou and Donner 2008, equations 3 and 4)."""
    values = np.array([one.value for one in parts])
    below = float(np.linalg.norm(values - [one.low for one in parts])) / len(parts)
    above = float(np.linalg.norm(values - [one.high for one in parts])) / len(parts)
    value = float(values.mean())
    return Estimate(value, value - below, value + above, sum(one.prompts for one in parts))


def _right(one: ScoredAnswers) -> float:
    worst, best_wrong = min(one.chosen), max(one.rejected)
    if len(one.chosen) > 1 or worst != best_wrong:
        return float(worst > best_wrong)
    return 1.0 / (1 + one.rejected.count(best_wrong))


def ties_score(rows: Sequence[ScoredAnswers], *, samples: int, seed: int) -> TiesScore:
    """``0.3 tied + 0.3 reference + 0.2 margin + 0.2 margin_hard + 0.01 m``, as RewardBench 2 scores its subset Ties.

    The id is ``ref:N`` for a prompt with one right answer and ``tied:N`` for its sibling with several. Margins are of
    the siblings; m is the mean of ``tanh(least gap to a wrong answer / spread of the right ones - 1)``. The interval
    weighs siblings together.

    Raises ``NotIdentifiedError`` where an id has another form, or a prompt has no sibling.
    """
    siblings: dict[str, dict[str, ScoredAnswers]] = {}
    for one in rows:
        kind, colon, number = one.id.partition(":")
        if not colon or kind not in (_REFERENCE, _TIED):
            raise NotIdentifiedError(f"no score of ties: ids must be ref:N or tied:N, found {one.id}")
        siblings.setdefault(number, {})[kind] = one
    if name := next((number for number, pair in siblings.items() if len(pair) < 2), ""):
        raise NotIdentifiedError(f"no score of ties: prompt {name} has only one of ref:{name} and tied:{name}")
    parts = np.array([_parts(pair[_REFERENCE], pair[_TIED]) for pair in siblings.values()])
    means = parts.mean(axis=0)
    drawn = [
        weights @ parts / weights.sum(axis=1, keepdims=True) for weights in prompt_weights(len(parts), samples, seed)
    ]
    value = float(means @ _WEIGHTS)
    interval = interval_of(np.concatenate(drawn) @ _WEIGHTS, value)
    return TiesScore(Estimate(value, *interval, len(parts)), *means[:4].tolist())


_WEIGHTS = np.array([0.3, 0.3, 0.2, 0.2, 0.01])


def _parts(reference: ScoredAnswers, tied: ScoredAnswers) -> Array:
    gap = min(tied.chosen) - max(tied.rejected)
    gap_of_reference = min(reference.chosen) - max(reference.rejected)
    spread, least = max(tied.chosen) - min(tied.chosen), min(gap, gap_of_reference)
    # The limit of the ratio where all right answers have one score; 0 / 0 counts as 0.
    nearer = np.tanh(least / spread - 1) if spread else float(np.sign(least))
    return np.array([gap > 0, gap_of_reference > 0, gap > spread, least > spread, nearer], dtype=np.float64)

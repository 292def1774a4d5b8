"""Intervals by bootstrap, and the win rate of one policy over another."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charter.outcomes import win

# Most resampling counts held at once (float64, so 32 MiB).
_BLOCK = 4_000_000
# Means that differ by less are equal but for rounding.
_EQUAL = 1e-12


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often a policy won, with 95 % bootstrap intervals. Failed judgements are counted and in no other figure."""

    wins: int
    ties: int
    losses: int
    failures: int
    # Mean of 1 for a win, 0.5 for a tie, 0 for a loss.
    win_rate: float
    win_rate_low: float
    win_rate_high: float
    # Mean of the probabilities themselves.
    mean_probability: float
    mean_probability_low: float
    mean_probability_high: float


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64],
    groups: Sequence[Hashable] | None = None,
    *,
    samples: int,
    seed: int,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    With ``groups``, whole groups are resampled (the cluster bootstrap, Davison and Hinkley 1997, section 3.8),
    so that pairs that share a prompt do not count as independent. The mean stays that of all drawn values.
    Groups whose means are all equal resample to an interval of no width. Where the values are known to lie within
    ``bounds`` it is then as wide as what was not seen allows: a share u of groups at the one or the other bound, where
    u is the exact binomial limit of a share of which n groups show none, ``1 - ((1 - level) / 2)^(1 / n)`` (Clopper and
    Pearson 1934). For values that are all 1 within (0, 1), this is their interval of a proportion.

    Args:
        values: [n], finite.
        groups: [n], the group of each value; None makes each value its own.
        samples: resamples to draw.
        seed: of the resampling; the same seed gives the same interval.
        level: share of the resampled means inside the interval.
        bounds: least and greatest value that there can be; None where nobody knows.

    Raises:
        ValueError: no values, a value that is not finite, lengths that differ, or a level outside (0, 1).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values must be a non-empty list of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite: leave failed measurements out and count them")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    sums, sizes = _by_group(array, groups)
    if bounds is not None and np.ptp(sums / sizes) < _EQUAL:
        unseen = 1 - ((1 - level) / 2) ** (1 / len(sums))
        mean = float(array.mean())
        return mean - unseen * (mean - bounds[0]), mean + unseen * (bounds[1] - mean)
    means = _resampled_means(sums, sizes, samples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cohen_kappa(labels: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Agreement of two labellers beyond chance (Cohen 1960): ``(p_o - p_e) / (1 - p_e)``.

    ``p_o`` is the share of items on which they agree; ``p_e`` the share on which they would if each labelled at random
    with the frequencies that are their own.

    Args:
        labels: what the first and what the second said of each item, [items], at least one.

    Returns:
        1 for full agreement, 0 for chance; None where both always say the same one thing: chance alone explains that.
    """
    items = len(labels)
    first, second = Counter(one for one, _ in labels), Counter(other for _, other in labels)
    observed = sum(one == other for one, other in labels) / items
    expected = sum(count * second[label] for label, count in first.items()) / items**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


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
        samples: bootstrap resamples.
        seed: of the resampling.

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
    of_judged = None if groups is None else [groups[i] for i, _ in judged]
    points = win(soft)
    rate_low, rate_high = bootstrap_interval(points, of_judged, samples=samples, seed=seed, bounds=(0, 1))
    soft_low, soft_high = bootstrap_interval(soft, of_judged, samples=samples, seed=seed, bounds=(0, 1))
    return WinRate(
        wins=int((points == 1).sum()),
        ties=int((points == 0.5).sum()),
        losses=int((points == 0).sum()),
        failures=len(probabilities) - len(judged),
        win_rate=math.fsum(points) / len(points),
        win_rate_low=rate_low,
        win_rate_high=rate_high,
        mean_probability=math.fsum(soft) / len(soft),
        mean_probability_low=soft_low,
        mean_probability_high=soft_high,
    )


def _by_group(
    values: NDArray[np.float64], groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and size of each group, both [groups]."""
    if groups is None:
        return values, np.ones_like(values)
    if len(groups) != len(values):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    members = np.array([index[group] for group in groups])
    sizes = np.bincount(members).astype(np.float64)
    return np.bincount(members, weights=values).astype(np.float64), sizes


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], samples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of resamples, [samples]: how often each group is drawn is multinomial."""
    count = len(sums)
    block = max(1, _BLOCK // count)
    means = []
    for start in range(0, samples, block):
        draws = rng.multinomial(count, np.full(count, 1 / count), size=min(block, samples - start))
        means.append((draws @ sums) / (draws @ sizes))
    return np.concatenate(means)

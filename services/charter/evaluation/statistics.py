"""Intervals of figures by the Bayesian bootstrap, whose unit is the prompt."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Array = NDArray[np.float64]

# Most weights held at once (float64, so 32 MiB).
_BLOCK = 4_000_000
# Of the intervals of all figures.
LEVEL = 0.95
# Chance with which the prompts that are asked for show a difference as large as the one found.
_POWER = 0.8
# A difference of this share of the interval is what fits leave in the last digits of a float.
_ROUNDING = 1e-6


class NotIdentifiedError(ValueError):
    """The data cannot tell this figure, whatever is assumed; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; ``prompts`` counts the independent units behind it."""

    value: float
    low: float
    high: float
    prompts: int

    def is_open(self, null: float) -> bool:
        """Whether the interval holds ``null``, the value of no difference."""
        return self.low <= null <= self.high

    def prompts_needed(self, null: float) -> int | None:
        """About how many prompts would show that the figure is not ``null``, if it is what was found here.

        Intervals shrink with the root of the count; with so many prompts one excludes ``null`` four times in five
        (power 0.8): ``prompts ((z_0.975 + z_0.8) se / (value - null))^2`` (Cohen 1988, section 2.4), with two digits.
        The standard error is that of the side towards ``null``, so that an open verdict wants more prompts than it has.
        None where the verdict is not open, or the figure is ``null`` but for rounding: no number of prompts shows that.
        """
        distance = abs(self.value - null)
        if not self.is_open(null) or distance <= _ROUNDING * (self.high - self.low):
            return None
        z = float(ndtri((1 + LEVEL) / 2))
        error = (self.high - self.value if self.value < null else self.value - self.low) / z
        needed = self.prompts * ((z + float(ndtri(_POWER))) * error / distance) ** 2
        unit: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
        return math.ceil(needed / unit) * unit


def prompt_weights(prompts: int, samples: int, seed: int) -> Iterator[Array]:
    """Weights of the prompts in each of ``samples`` draws, in blocks [draws, prompts]; a weight is 1 on average.

    The Bayesian bootstrap (Rubin 1981): weights are exponential, which gives the Dirichlet's when divided by their sum.
    A resample with replacement leaves a third of the prompts out, and with them perhaps all comparisons of two models,
    or all prompts on which one answer is the longer; here every draw holds every prompt. Whatever is found on one
    prompt (models, orders, seeds) has its one weight.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // prompts)
    for start in range(0, samples, block):
        yield rng.standard_exponential((min(block, samples - start), prompts))


def prior_weights(count: int, samples: int, seed: int) -> Array:
    """Weights [samples, count] of half a prompt each, for what was not seen but may be; independent of the prompts'.

    With half a prompt won and half a prompt lost, a rate of single judgements has the interval of Jeffreys' prior
    (Brown, Cai and DasGupta 2001, section 4.1), which has some width where all were won.
    """
    return np.random.default_rng([seed, 1]).standard_gamma(0.5, (samples, count))


def interval_of(draws: Array, value: float, level: float = LEVEL) -> tuple[float, float]:
    """The middle ``level`` of the draws [samples], made to hold the value: that of nothing but wins is at an end."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), value), max(float(high), value)


def bootstrap_interval(
    values: Sequence[float] | Array,
    groups: Sequence[Hashable] | None = None,
    *,
    samples: int,
    seed: int,
    level: float = LEVEL,
    bounds: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Interval of the mean by the Bayesian bootstrap (Rubin 1981), see ``prompt_weights``.

    With ``groups``, whole groups are weighted (the cluster bootstrap, Davison and Hinkley 1997, section 3.8), so that
    pairs that share a prompt do not count as independent. The mean stays that of all values.
    Where the values are known to lie within ``bounds``, half a group at each bound is added to the draws
    (``prior_weights``): values that are all equal have an interval of some width, and those near a bound a right one.

    Args:
        values: [n], finite.
        groups: [n], the group of each value; None makes each value its own.
        samples: draws of weights.
        seed: of the draws; the same seed gives the same interval.
        level: share of the drawn means inside the interval.
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
    members, count = numbered(range(len(array)) if groups is None else groups)
    if len(members) != len(array):
        raise ValueError(f"{len(array)} values but {len(members)} groups")
    columns = np.stack([np.bincount(members, weights=array), np.bincount(members)], axis=1)
    sums, sizes = np.concatenate([weights @ columns for weights in prompt_weights(count, samples, seed)]).T
    if bounds is not None:
        unseen = prior_weights(2, samples, seed) * (len(array) / count)
        # Both ways around, so that the interval of the mirrored values is the mirrored interval to the last draw.
        sums = np.concatenate([sums + unseen @ bounds, sums + unseen @ bounds[::-1]])
        sizes = np.tile(sizes + unseen.sum(axis=1), 2)
    return interval_of(sums / sizes, math.fsum(array) / len(array), level)


def estimate(
    values: Sequence[float] | Array,
    groups: Sequence[Hashable],
    *,
    samples: int,
    seed: int,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean of ``values`` [n] with its interval, whose unit is the group. As ``bootstrap_interval``."""
    low, high = bootstrap_interval(values, groups, samples=samples, seed=seed, bounds=bounds)
    return Estimate(math.fsum(values) / len(values), low, high, len(set(groups)))


def mean_of_pairs(
    values: Array, first: NDArray[np.intp], second: NDArray[np.intp], bounds: tuple[float, float]
) -> Estimate:
    """The mean of what was found on pairs of prompts, as if on all pairs, with its interval.

    Two pairs that share a prompt go together: the variance is the sum of the products of deviations over all such pairs
    (Aronow, Samii and Assenova 2015, arXiv 1312.3398, section 3), at least that of independent pairs, with Student's t.

    Args:
        values: [pairs].
        first: number of the first prompt of each pair [pairs].
        second: those of the second.
        bounds: least and greatest value that there can be.
    """
    apart = values - values.mean()
    _, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    sums = np.bincount(places, np.tile(apart, 2))
    # A pair with itself is in the sums of both its prompts.
    alone = float(apart @ apart)
    variance = max(float(sums @ sums) - alone, alone) / len(values) ** 2
    half = float(stdtrit(len(sums) - 1, (1 + LEVEL) / 2)) * math.sqrt(variance)
    value = float(values.mean())
    return Estimate(value, max(bounds[0], value - half), min(bounds[1], value + half), len(sums))


def damped(step: Array, largest: float) -> Array:
    """Newton's steps [draws, parameters] of logistic regressions, shortened so that they find the end from anywhere.

    Whole ones may go around in a circle where the labels are nearly separable. The factor is ``ln(1 + b) / b`` with
    b the length of the step times ``largest``, the largest norm of a row of features (Sun and Tran-Dinh 2019, arXiv
    1703.04599, section 4): near 1 for short steps.
    """
    length = np.maximum(np.linalg.norm(step, axis=1, keepdims=True) * largest, 1e-300)
    return np.asarray(step * (np.log1p(length) / length))


def numbered(names: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    """The place of each name among the different ones, in order of appearance [n], and how many there are."""
    places: dict[Hashable, int] = {}
    found = np.array([places.setdefault(name, len(places)) for name in names], dtype=np.intp)
    return found, len(places)

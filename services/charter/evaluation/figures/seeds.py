"""Figures of ways to train: means over seeds, uncertain by the prompts that were asked and by the seeds that ran.

The policies of all arms answer the same prompts, so that a figure of a policy is ``arm + prompts + seed + both``,
crossed random effects (Searle, Casella and McCulloch 1992, chapter 4). What the prompts do to the mean of an arm is in
the draws of the bootstrap, whose weights all policies share. What the seeds do to it is seen between its policies:
their scatter, less what the prompts alone explain of it. A bootstrap of three seeds would miss a third of it and take
the rest as certain; here it has Student's distribution, and as three seeds tell little of their own scatter, that of
all arms is taken together. So it is assumed that arms scatter alike by their seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from charter.evaluation.statistics import Array


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """Means over seeds of ``figures`` of each arm, such as its ratings on two axes."""

    # [arms, figures].
    means: Array
    # What the means may be too [draws, arms, figures].
    draws: Array
    # Of the means of each arm [arms, figures, figures], and their degrees of freedom [arms], without end where only
    # prompts are uncertain.
    covariances: Array
    covariance_degrees: Array
    # Seeds beyond the first, of all arms; with 0 nothing is known of what other seeds would give: all that is uncertain
    # here is the prompts.
    degrees: int


def over_seeds(values: Sequence[Array], draws: Sequence[Array], seed: int) -> OverSeeds:
    """Means over the seeds of each arm.

    The seeds' part of a mean of S seeds is Normal with covariance ``max(W df / chi2_df - V, 0) / S``, where W is the
    covariance between seeds within arms, V what of it the prompts explain (the same of the draws), and chi2_df is drawn
    once for all arms: the generalised pivot of crossed random effects (Weerahandi 1993; Hannig, Iyer and Patterson
    2006), which holds V known, as it comes of many prompts; df counts the seeds beyond the first of all arms. The
    degrees of freedom of an arm's covariance are ``df / share^2``, with the share of it that comes of W (Satterthwaite
    1946).

    Args:
        values: of each arm [seeds, figures]; arms may have different numbers of seeds, at least one.
        draws: of each arm [draws, seeds, figures], by draws of prompts that all arms share.
        seed: of what is drawn of the seeds.

    Raises:
        ValueError: no arm, or one without a seed.
    """
    if not values or min(map(len, values)) == 0:
        raise ValueError("every arm needs a policy of at least one seed")
    counts = np.array([len(one) for one in values])
    means = np.stack([one.mean(axis=0) for one in values])
    by_prompts = np.stack([one.mean(axis=1) for one in draws], axis=1)
    degrees = int((counts - 1).sum())
    samples, arms, figures = map(int, by_prompts.shape)
    of_prompts = np.stack([np.cov(by_prompts[:, arm], rowvar=False).reshape(figures, figures) for arm in range(arms)])
    if degrees == 0:
        return OverSeeds(means, by_prompts, of_prompts, np.full(arms, np.inf), 0)
    between = np.asarray(np.sum([_scatter(one[None])[0] for one in values], axis=0) / degrees)
    explained = np.asarray(np.sum([_scatter(one - one.mean(axis=0)).mean(axis=0) for one in draws], axis=0) / degrees)
    rng = np.random.default_rng([seed, 2])
    noise = rng.standard_normal((samples, arms, figures)) / np.sqrt(counts)[:, None]
    roots = _root(between * (degrees / rng.chisquare(degrees, samples))[:, None, None] - explained)
    drawn = np.asarray(by_prompts + np.einsum("dij,daj->dai", roots, noise))
    root = _root((between - explained)[None])[0]
    covariances = of_prompts + (root @ root.T) / counts[:, None, None]
    seeds_part = np.linalg.pinv(covariances) @ (between / counts[:, None, None])
    shares = np.trace(seeds_part, axis1=1, axis2=2) / figures
    # Where all policies are alike there is nothing to share.
    worth = degrees / np.clip(shares, 1e-6, 1.0) ** 2
    return OverSeeds(means, drawn, covariances, worth, degrees)


def _scatter(values: Array) -> Array:
    """Sums of products of deviations from the mean over seeds [n, figures, figures], of [n, seeds, figures]."""
    apart = values - values.mean(axis=1, keepdims=True)
    return np.asarray(np.einsum("nsi,nsj->nij", apart, apart))


def _root(matrices: Array) -> Array:
    """A root R, with ``R R^T`` the nearest covariance to each symmetric matrix [n, figures, figures]."""
    lengths, directions = np.linalg.eigh(matrices)
    return np.asarray(directions * np.sqrt(np.maximum(lengths, 0.0))[:, None, :])

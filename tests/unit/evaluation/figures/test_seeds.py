"""Means over seeds against Student's and Hotelling's distributions and the variance components of a crossed layout."""

import numpy as np
import pytest
from charter.evaluation.figures.seeds import over_seeds
from charter.evaluation.statistics import Array, prompt_weights
from scipy import stats


def certain(values: Array, samples: int = 100_000) -> Array:
    """Draws of prompts that say all the same [draws, seeds, figures]."""
    return np.broadcast_to(values, (samples, *values.shape))


def test_where_prompts_are_certain_the_mean_of_seeds_has_students_interval() -> None:
    values = np.array([[10.0], [30.0], [80.0]])
    found = over_seeds([values], [certain(values)], seed=0)
    expected = stats.t(2, values.mean(), stats.sem(values[:, 0])).interval(0.95)
    assert found.means.tolist() == [[40.0]]
    assert found.degrees == 2
    assert np.quantile(found.draws[:, 0, 0], [0.025, 0.975]) == pytest.approx(expected, rel=0.05)


def test_the_scatter_of_all_arms_is_taken_together() -> None:
    one, other = np.array([[10.0], [30.0], [80.0]]), np.array([[5.0], [6.0]])
    found = over_seeds([one, other], [certain(one), certain(other)], seed=0)
    pooled = np.sqrt((one.var(ddof=1) * 2 + other.var(ddof=1)) / 3)
    half = stats.t(3).ppf(0.975) * pooled
    assert found.degrees == 3
    low, high = np.quantile(found.draws[:, :, 0], [0.025, 0.975], axis=0)
    assert (high - low) / 2 == pytest.approx([half / np.sqrt(3), half / np.sqrt(2)], rel=0.03)
    # Both are as uncertain of the scatter, each by noise of its own.
    apart = found.draws[:, 0, 0] - found.draws[:, 1, 0]
    assert np.diff(np.quantile(apart, [0.025, 0.975]))[0] / 2 == pytest.approx(half * np.sqrt(5 / 6), rel=0.03)


def test_the_covariance_is_worth_as_much_as_what_comes_of_seeds_is() -> None:
    rng = np.random.default_rng(0)
    arms = [rng.standard_normal((3, 2)) @ [[3.0, -2.0], [0.0, 1.0]] for _ in range(3)]
    within = sum(2 * np.cov(one, rowvar=False) for one in arms) / 6
    sure = over_seeds(arms, [certain(one, 10) for one in arms], seed=0)
    assert sure.covariances[0] == pytest.approx(within / 3)
    assert sure.covariance_degrees == pytest.approx([6, 6, 6])
    # Prompts that move all policies of an arm alike, by as much as seeds move the mean: half of it is of the seeds.
    root = np.linalg.cholesky(within / 3)
    moved = [one + rng.standard_normal((100_000, 1, 2)) @ root.T for one in arms]
    found = over_seeds(arms, moved, seed=0)
    assert found.covariances[0] == pytest.approx(2 * within / 3, rel=0.05)
    assert found.covariance_degrees == pytest.approx([24, 24, 24], rel=0.05)


def test_the_variance_is_that_of_crossed_random_effects() -> None:
    """Of a mean over both, by an analysis of variance: (MS prompts + MS seeds - MS both) / (prompts seeds)."""
    rng = np.random.default_rng(1)
    prompts, seeds, arms = 60, 4, 12
    expected = []
    shared = 3 * rng.standard_normal((prompts, 1))
    table = [shared + rng.standard_normal(seeds) + 4 * rng.standard_normal((prompts, seeds)) for _ in range(arms)]
    weights = np.concatenate(list(prompt_weights(prompts, 4000, 0)))
    weights /= weights.sum(axis=1, keepdims=True)
    found = over_seeds([one.mean(axis=0)[:, None] for one in table], [(weights @ one)[:, :, None] for one in table], 0)
    for one in table:
        rows, columns, mean = one.mean(axis=1), one.mean(axis=0), one.mean()
        both = one - rows[:, None] - columns + mean
        of_prompts = seeds * rows.var(ddof=1)
        of_both = (both**2).sum() / ((prompts - 1) * (seeds - 1))
        of_seeds = prompts * columns.var(ddof=1)
        expected.append((of_prompts + of_seeds - of_both) / (prompts * seeds))
    # Pooled, so that the mean over arms is what can be compared; the covariance is what ellipses have.
    assert found.covariances[:, 0, 0].mean() == pytest.approx(np.mean(expected), rel=0.05)
    assert found.draws[:, :, 0].var(axis=0).mean() == pytest.approx(np.mean(expected), rel=0.1)


def test_seeds_that_differ_no_more_than_prompts_explain_add_nothing() -> None:
    rng = np.random.default_rng(2)
    draws = [rng.normal(0.0, 5.0, (4000, 3, 1)) for _ in range(2)]
    same = [np.zeros((3, 1)), np.zeros((3, 1))]
    found = over_seeds(same, draws, seed=0)
    assert found.draws[:, 0] == pytest.approx(draws[0].mean(axis=1))


def test_one_seed_says_nothing_of_other_seeds() -> None:
    rng = np.random.default_rng(3)
    draws = rng.normal(0.0, 5.0, (500, 1, 2))
    found = over_seeds([np.zeros((1, 2))], [draws], seed=0)
    assert found.degrees == 0
    assert found.draws[:, 0] == pytest.approx(draws[:, 0])
    assert found.covariance_degrees.tolist() == [np.inf]
    assert found.covariances[0] == pytest.approx(np.cov(draws[:, 0], rowvar=False))


def test_an_arm_without_a_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        over_seeds([np.zeros((0, 2))], [np.zeros((10, 0, 2))], seed=0)

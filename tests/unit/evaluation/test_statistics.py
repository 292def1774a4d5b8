"""The Bayesian bootstrap against closed forms and scipy; the prompts that would be needed against the textbook."""

import math

import numpy as np
import pytest
from charter.evaluation.statistics import Estimate, bootstrap_interval, estimate, mean_of_pairs
from scipy import stats


def test_agrees_with_scipy_bootstrap() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=80)
    ours = bootstrap_interval(values, samples=20_000, seed=0)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours[0] == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours[1] == pytest.approx(theirs.high, abs=0.03 * width)


def test_a_proportion_has_the_interval_of_jeffreys_prior() -> None:
    # Dirichlet weights of k ones, n - k zeros and half of each add up to Beta(k + 1/2, n - k + 1/2).
    n, ones = 50, 30
    values = [1.0] * ones + [0.0] * (n - ones)
    low, high = bootstrap_interval(values, samples=50_000, seed=1, level=0.9, bounds=(0, 1))
    exact = stats.beta(ones + 0.5, n - ones + 0.5)
    assert low == pytest.approx(exact.ppf(0.05), abs=2e-3)
    assert high == pytest.approx(exact.ppf(0.95), abs=2e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_values_at_a_bound_have_an_interval_that_holds_them(value: float) -> None:
    low, high = bootstrap_interval([value] * 20, samples=50_000, seed=1, bounds=(0, 1))
    exact = stats.beta(20 * value + 0.5, 20 * (1 - value) + 0.5)
    assert (low, high) == pytest.approx((min(exact.ppf(0.025), value), max(exact.ppf(0.975), value)), abs=3e-3)


def test_groups_of_unequal_size_have_the_mean_of_all_values() -> None:
    # Two groups: the share of the first is uniform in (0, 1), so that the mean is 3 u / (3 u + (1 - u)).
    low, high = bootstrap_interval([1, 1, 1, 0], ["p", "p", "p", "q"], samples=100_000, seed=4, level=0.8)
    assert low == pytest.approx(0.3 / (0.3 + 0.9), abs=5e-3)
    assert high == pytest.approx(2.7 / (2.7 + 0.1), abs=5e-3)


def test_repeated_values_in_one_group_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(5).random(20)
    once = bootstrap_interval(values, samples=4000, seed=6, bounds=(0, 1))
    groups = np.repeat(np.arange(20), 10)
    copies = bootstrap_interval(np.repeat(values, 10), groups.tolist(), samples=4000, seed=6, bounds=(0, 1))
    independent = bootstrap_interval(np.repeat(values, 10), samples=4000, seed=6, bounds=(0, 1))
    assert copies == pytest.approx(once)
    assert independent[1] - independent[0] < 0.5 * (once[1] - once[0])


def test_same_seed_same_interval_whatever_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(7).random(11)
    whole = bootstrap_interval(values, samples=1000, seed=8)
    monkeypatch.setattr("charter.evaluation.statistics._BLOCK", 100)
    assert bootstrap_interval(values, samples=1000, seed=8) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "groups", "options", "message"),
    [
        ([], None, {}, "non-empty"),
        ([1.0, math.nan], None, {}, "finite"),
        ([1.0, 2.0], ["a"], {}, "2 values but 1 groups"),
        ([1.0], None, {"level": 1.0}, "level"),
        ([1.0], None, {"samples": 0}, "samples"),
    ],
)
def test_bad_input_is_refused(values: list[float], groups: list[str] | None, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, groups, **{"samples": 100, "seed": 0, **options})


def test_prompts_needed_are_those_of_the_textbook() -> None:
    # To tell 55 % from 50 % with power 0.8: (1.960 + 0.842)^2 * 0.25 / 0.05^2 = 785.
    half = 1.959964 * math.sqrt(0.25 / 100)
    found = Estimate(0.55, 0.55 - half, 0.55 + half, 100)
    assert found.prompts_needed(0.5) == 790


@pytest.mark.parametrize(
    "found", [Estimate(0.875, 0.469, 0.982, 4), Estimate(0.125, 0.018, 0.531, 4), Estimate(0.25, 0.08, 0.531, 12)]
)
def test_an_open_verdict_needs_more_prompts_than_it_has(found: Estimate) -> None:
    needed = found.prompts_needed(0.5)
    assert needed is not None
    # ((1.960 + 0.842) / 1.960)^2 where the interval just holds the value of no difference.
    assert needed > 2.04 * found.prompts


def test_no_prompts_are_needed_where_the_verdict_is_clear_and_none_would_do_where_there_is_no_difference() -> None:
    assert Estimate(0.6, 0.52, 0.68, 100).prompts_needed(0.5) is None
    assert Estimate(0.5, 0.4, 0.6, 100).prompts_needed(0.5) is None
    # What a fit of ratings finds for models that won as much as they lost.
    assert Estimate(-2e-12, -105.0, 127.0, 12).prompts_needed(0.0) is None
    assert Estimate(-20.0, -50.0, 10.0, 40).is_open(0.0)


def test_an_estimate_counts_the_groups() -> None:
    found = estimate([1.0, 0.0, 1.0], ["p", "p", "q"], samples=200, seed=0, bounds=(0, 1))
    assert found.prompts == 2
    assert found.value == pytest.approx(2 / 3)
    assert found.low < found.value < found.high


def test_pairs_that_share_a_prompt_go_together() -> None:
    # All pairs of five prompts, of which each says what its two prompts add.
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    pairs = np.array([(i, j) for i in range(5) for j in range(i)])
    found = mean_of_pairs(values[pairs].sum(axis=1), pairs[:, 0], pairs[:, 1], bounds=(0.0, 10.0))
    apart = values[pairs].sum(axis=1) - found.value
    shared = [
        apart[p] * apart[q] for p in range(10) for q in range(10) if set(pairs[p].tolist()) & set(pairs[q].tolist())
    ]
    half = stats.t.isf(0.025, 4) * math.sqrt(sum(shared)) / 10
    assert found.value == pytest.approx(2 * values.mean())
    assert [found.low, found.high] == pytest.approx([found.value - half, min(10.0, found.value + half)])

"""The bootstrap against scipy, closed forms and exact small cases; the win rate against counting by hand."""

import itertools
import math

import numpy as np
import pytest
from charter.evaluation.statistics import bootstrap_interval, cohen_kappa, win_rate
from hypothesis import given, settings
from hypothesis import strategies as st
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


def test_proportion_agrees_with_the_binomial_closed_form() -> None:
    # Resampling k ones among n gives binomial(n, k / n) / n exactly.
    n, ones = 50, 30
    values = [1.0] * ones + [0.0] * (n - ones)
    low, high = bootstrap_interval(values, samples=50_000, seed=1, level=0.9)
    exact = stats.binom(n, ones / n)
    assert low == pytest.approx(exact.ppf(0.05) / n, abs=1e-12)
    assert high == pytest.approx(exact.ppf(0.95) / n, abs=1e-12)


def test_small_case_by_enumeration() -> None:
    values = [0.0, 1.0, 5.0]
    means = [sum(draw) / 3 for draw in itertools.product(values, repeat=3)]
    low, high = bootstrap_interval(values, samples=100_000, seed=2, level=0.8)
    assert low == pytest.approx(float(np.quantile(means, 0.1, method="inverted_cdf")))
    assert high == pytest.approx(float(np.quantile(means, 0.9, method="inverted_cdf")))


def test_groups_by_enumeration() -> None:
    # Groups of unequal size: the mean is over drawn values, not over group means.
    groups = {"p": [1.0, 1.0, 1.0], "q": [0.0], "r": [0.5, 0.0]}
    values = [v for members in groups.values() for v in members]
    names = [name for name, members in groups.items() for _ in members]
    means = []
    for draw in itertools.product(groups.values(), repeat=3):
        drawn = [v for members in draw for v in members]
        means.append(sum(drawn) / len(drawn))
    low, high = bootstrap_interval(values, names, samples=100_000, seed=4, level=0.8)
    assert low == pytest.approx(float(np.quantile(means, 0.1, method="inverted_cdf")))
    assert high == pytest.approx(float(np.quantile(means, 0.9, method="inverted_cdf")))


def test_repeated_values_in_one_group_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(5).random(20)
    once = bootstrap_interval(values, samples=4000, seed=6)
    copies = bootstrap_interval(np.repeat(values, 10), np.repeat(np.arange(20), 10).tolist(), samples=4000, seed=6)
    independent = bootstrap_interval(np.repeat(values, 10), samples=4000, seed=6)
    assert copies == pytest.approx(once)
    assert independent[1] - independent[0] < 0.5 * (once[1] - once[0])


def test_same_seed_same_interval_whatever_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(7).random(11)
    whole = bootstrap_interval(values, samples=1000, seed=8)
    monkeypatch.setattr("charter.evaluation.statistics._BLOCK", 100)
    assert bootstrap_interval(values, samples=1000, seed=8) == whole


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


def test_win_rate_counts_and_halves_ties() -> None:
    result = win_rate([0.9, 0.6, 0.5, 0.1, None, None], samples=2000, seed=0)
    assert (result.wins, result.ties, result.losses, result.failures) == (2, 1, 1, 2)
    assert result.win_rate == 0.625
    assert result.mean_probability == pytest.approx(0.525)
    assert result.win_rate_low <= result.win_rate <= result.win_rate_high
    assert result.mean_probability_low <= result.mean_probability <= result.mean_probability_high


def test_win_rate_intervals_are_those_of_the_judged_prompts_only() -> None:
    with_failures = win_rate([0.9, None, 0.2, 0.7, None], ["a", "a", "b", "c", "d"], samples=3000, seed=1)
    low, high = bootstrap_interval([1.0, 0.0, 1.0], ["a", "b", "c"], samples=3000, seed=1)
    assert (with_failures.win_rate_low, with_failures.win_rate_high) == (low, high)
    soft = bootstrap_interval([0.9, 0.2, 0.7], ["a", "b", "c"], samples=3000, seed=1)
    assert (with_failures.mean_probability_low, with_failures.mean_probability_high) == soft


@pytest.mark.parametrize(("wins", "losses"), [(20, 0), (0, 20)])
def test_a_win_rate_without_an_exception_has_the_exact_interval_of_a_proportion(wins: int, losses: int) -> None:
    found = win_rate([0.9] * wins + [0.1] * losses, samples=100, seed=0)
    exact = stats.binomtest(wins, wins + losses).proportion_ci(0.95, method="exact")
    assert (found.win_rate_low, found.win_rate_high) == pytest.approx((exact.low, exact.high))


def test_nothing_but_ties_is_half_a_win_rate_with_an_interval_of_some_width() -> None:
    found = win_rate([0.49999999999999994, 0.5, 0.5 + 1e-9] * 15, [f"{i // 3}" for i in range(45)], samples=100, seed=0)
    assert (found.wins, found.ties, found.losses, found.win_rate) == (0, 45, 0, 0.5)
    # 15 prompts show no win, so that up to 22 % may be one.
    assert (found.win_rate_low, found.win_rate_high) == pytest.approx((0.5 - 0.1090, 0.5 + 0.1090), abs=1e-4)


def test_win_rate_without_a_single_judgement_is_an_error() -> None:
    with pytest.raises(ValueError, match="all 2 judgements failed"):
        win_rate([None, None], samples=100, seed=0)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_win_rate_refuses_what_is_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        win_rate([0.5, wrong], samples=100, seed=0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_swapping_the_policies_mirrors_the_win_rate(probabilities: list[float]) -> None:
    there = win_rate(probabilities, samples=200, seed=3)
    back = win_rate([1 - p for p in probabilities], samples=200, seed=3)
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert there.win_rate == pytest.approx(1 - back.win_rate)
    assert there.win_rate_low == pytest.approx(1 - back.win_rate_high)
    assert there.mean_probability_high == pytest.approx(1 - back.mean_probability_low)


def test_cohen_kappa_of_a_known_table() -> None:
    """Two raters, 50 items: both yes 20, both no 15, yes/no 5, no/yes 10. p_o = 0.7, p_e = 0.5, kappa 0.4."""
    labels = [("y", "y")] * 20 + [("n", "n")] * 15 + [("y", "n")] * 5 + [("n", "y")] * 10
    assert cohen_kappa(labels) == pytest.approx(0.4)


def test_cohen_kappa_at_its_ends() -> None:
    assert cohen_kappa([("a", "a"), ("b", "b")]) == 1.0
    assert cohen_kappa([("a", "b"), ("b", "a")]) == -1.0
    assert cohen_kappa([("a", "a")] * 3) is None

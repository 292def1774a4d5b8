"""The win rate against counting by hand."""

import math

import pytest
from charter.evaluation.figures.rows import Judgement, between
from charter.evaluation.figures.win_rate import win_matrix, win_rate
from charter.evaluation.statistics import bootstrap_interval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats


def judgement(prompt: str, a: str, b: str, probability: float | None) -> Judgement:
    return Judgement(prompt, "helpful", "judge", a, b, 0, probability)


def test_win_rate_counts_and_halves_ties() -> None:
    result = win_rate([0.9, 0.6, 0.5, 0.1, None, None], samples=2000, seed=0)
    assert (result.wins, result.ties, result.losses, result.failures) == (2, 1, 1, 2)
    assert result.win_rate.value == 0.625
    assert result.mean_probability.value == pytest.approx(0.525)
    assert result.win_rate.low <= result.win_rate.value <= result.win_rate.high
    assert result.mean_probability.low <= result.mean_probability.value <= result.mean_probability.high


def test_intervals_are_those_of_the_judged_prompts_only() -> None:
    found = win_rate([0.9, None, 0.2, 0.7, None], ["a", "a", "b", "c", "d"], samples=3000, seed=1)
    hard = bootstrap_interval([1.0, 0.0, 1.0], ["a", "b", "c"], samples=3000, seed=1, bounds=(0, 1))
    soft = bootstrap_interval([0.9, 0.2, 0.7], ["a", "b", "c"], samples=3000, seed=1, bounds=(0, 1))
    assert (found.win_rate.low, found.win_rate.high) == hard
    assert (found.mean_probability.low, found.mean_probability.high) == soft
    assert found.win_rate.prompts == 3


@pytest.mark.parametrize(("wins", "losses"), [(20, 0), (0, 20)])
def test_a_win_rate_without_an_exception_has_the_interval_of_a_proportion(wins: int, losses: int) -> None:
    found = win_rate([0.9] * wins + [0.1] * losses, samples=50_000, seed=0).win_rate
    low, high = stats.beta(wins + 0.5, losses + 0.5).ppf([0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low if wins else 0.0, 1.0 if wins else high), abs=3e-3)


def test_nothing_but_ties_is_half_a_win_rate_with_an_interval_of_some_width() -> None:
    found = win_rate([0.49999999999999994, 0.5, 0.5 + 1e-9] * 15, [f"{i // 3}" for i in range(45)], samples=100, seed=0)
    assert (found.wins, found.ties, found.losses, found.win_rate.value) == (0, 45, 0, 0.5)
    assert found.win_rate.low == pytest.approx(1 - found.win_rate.high)
    assert 0.01 < found.win_rate.high - 0.5 < 0.11


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
    back = win_rate([1 - p for p in probabilities], samples=200, seed=3).turned()
    assert (there.wins, there.ties, there.losses) == (back.wins, back.ties, back.losses)
    for one, other in ((there.win_rate, back.win_rate), (there.mean_probability, back.mean_probability)):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_the_matrix_turns_judgements_to_the_model_of_its_row() -> None:
    rows = [
        judgement("p", "ppo", "start", 0.9),
        judgement("q", "start", "ppo", 0.2),
        judgement("q", "dpo", "ppo", None),
        judgement("q", "dpo", "start", 0.7),
    ]
    found = win_matrix(rows, samples=200, seed=0)
    assert set(found) == {("ppo", "start"), ("start", "ppo"), ("dpo", "start"), ("start", "dpo")}
    assert found["ppo", "start"].mean_probability.value == pytest.approx(0.85)
    assert found["start", "ppo"].losses == 2


def test_a_judgement_turned_says_the_same_of_the_other_model() -> None:
    [found] = between([Judgement("p", "helpful", "judge", "ppo", "start", 3, 0.75, True)], "start", "ppo")
    assert found == Judgement("p", "helpful", "judge", "start", "ppo", 3, 0.25, False)

"""Bradley-Terry ratings against scikit-learn, closed forms and scipy."""

import numpy as np
import pytest
from charter.evaluation.figures.ratings import ELO, ratings
from charter.evaluation.figures.rows import Judgement
from charter.evaluation.statistics import NotIdentifiedError
from scipy import stats
from scipy.special import expit

ROWS = [
    ("start", "ppo", 0.2),
    ("start", "ppo", 0.4),
    ("dpo", "start", 0.7),
    ("ppo", "dpo", 0.55),
    ("ppo", "dpo", 0.9),
    ("start", "dpo", 0.5),
]


def judgements(rows: list[tuple[str, str, float]], prompts: list[str] | None = None) -> list[Judgement]:
    return [
        Judgement(prompts[i] if prompts else str(i), "helpful", "judge", a, b, 0, probability)
        for i, (a, b, probability) in enumerate(rows)
    ]


def test_the_fit_is_scikit_learns() -> None:
    """scikit-learn 1.9.1: ``LogisticRegression(C=1e10)``, soft labels as weighted rows, half a win each way."""
    found = ratings(judgements(ROWS), "start", samples=10, seed=0)
    assert found.names == ("start", "dpo", "ppo")
    assert found.values == pytest.approx([0, 27.812149821, 115.272746945], abs=1e-3)


def test_two_models_have_the_log_odds_of_their_win_rate() -> None:
    found = ratings(
        judgements([("ppo", "start", 1.0)] * 64 + [("ppo", "start", 0.0)] * 36), "start", samples=20_000, seed=0
    )
    rating = found.rating("ppo")
    assert rating.value == pytest.approx(400 * np.log10(64.5 / 36.5))
    # Jeffreys' interval of the win rate, on Elo's scale.
    low, high = stats.beta(64.5, 36.5).ppf([0.025, 0.975])
    assert rating.low == pytest.approx(400 * np.log10(low / (1 - low)), abs=4)
    assert rating.high == pytest.approx(400 * np.log10(high / (1 - high)), abs=4)
    assert (found.rating("start").low, found.rating("start").high) == (0, 0)


def test_ratings_that_explain_all_labels_are_found() -> None:
    truth = dict(zip(("start", "dpo", "ppo", "rloo"), np.array([0, 60, -40, 150]), strict=True))
    rows = [(a, b, float(expit((truth[a] - truth[b]) / ELO))) for a in truth for b in truth if a != b] * 400
    found = ratings(judgements(rows), "start", samples=10, seed=0)
    assert found.values == pytest.approx([truth[name] for name in found.names], abs=0.5)
    assert found.difference("rloo", "ppo").value == pytest.approx(190, abs=1)


def test_models_that_met_the_start_alone_have_the_log_odds_of_their_own_wins() -> None:
    rows = [(name, "start", won) for name, won in (("ppo", 0.7), ("dpo", 0.2), ("ppo", 1.0))] * 3
    found = ratings(judgements(rows), "start", samples=10, seed=0)
    # Each was judged on prompts of its own; half a prompt more was won, and half a prompt lost.
    won = {"dpo": (3 * 0.2 + 0.5) / 4, "ppo": (3 * 1.7 + 0.5) / 7}
    assert found.values[1:] == pytest.approx([400 * np.log10(won[name] / (1 - won[name])) for name in found.names[1:]])


def test_a_model_that_always_wins_is_rated_finitely_with_a_wide_interval() -> None:
    found = ratings(judgements([("ppo", "start", 1.0)] * 30), "start", samples=2000, seed=0)
    rating = found.rating("ppo")
    assert rating.value == pytest.approx(400 * np.log10(30.5 / 0.5))
    assert 300 < rating.low < rating.value < rating.high
    assert rating.high - rating.low > 300
    assert found.best()["ppo"] > 0.999


def test_what_shares_a_prompt_is_not_independent() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(40) < 0.6).astype(float)
    rows = [("ppo", "start", float(one)) for one in labels]
    once = ratings(judgements(rows, [str(i) for i in range(40)]), "start", samples=2000, seed=0).rating("ppo")
    again = ratings(judgements(rows * 5, [str(i) for i in range(40)] * 5), "start", samples=2000, seed=0).rating("ppo")
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    assert again.prompts == 40


def test_the_probability_of_being_best_is_shared_by_equals() -> None:
    rows = [(a, b, 0.5 + lead) for a in "xyz" for b in "xyz" if a < b for lead in (-0.3, 0.3)] * 20
    best = ratings(judgements(rows), "x", samples=4000, seed=0).best()
    assert sum(best.values()) == pytest.approx(1)
    assert best == pytest.approx({"x": 1 / 3, "y": 1 / 3, "z": 1 / 3}, abs=0.05)


def test_failures_are_counted_and_in_no_rating() -> None:
    failed = Judgement("9", "helpful", "judge", "ppo", "start", 0, None)
    with_failure = ratings([*judgements(ROWS), failed], "start", samples=50, seed=0)
    assert with_failure.failures == 1
    assert with_failure.values == pytest.approx(ratings(judgements(ROWS), "start", samples=50, seed=0).values)


def test_models_that_were_never_compared_are_refused_by_name() -> None:
    rows = [("ppo", "start", 0.7), ("dpo", "grpo", 0.6)]
    with pytest.raises(NotIdentifiedError, match="start, ppo; dpo, grpo"):
        ratings(judgements(rows), "start", samples=10, seed=0)


def test_ratings_without_the_start_model_are_refused() -> None:
    with pytest.raises(NotIdentifiedError, match="no judgement of start"):
        ratings(judgements([("ppo", "dpo", 0.7)]), "start", samples=10, seed=0)

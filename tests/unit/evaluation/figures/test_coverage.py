"""Intervals hold the truth about as often as they say: a small version of tests/benchmarks/coverage.py."""

import pytest

from tests.benchmarks.coverage import (
    Arms,
    Scenario,
    Simulation,
    kappas,
    length_controlled_rates,
    model_ratings,
    over_seeds,
    pair_means,
    soft_win_rates,
    subset_means,
    token_means,
    win_rates,
)


@pytest.mark.parametrize(
    "simulate",
    [
        pytest.param(win_rates(0.7), id="win rate"),
        pytest.param(soft_win_rates(0.7), id="soft win rate"),
        pytest.param(length_controlled_rates(0.4, 1.5, 0.5), id="length-controlled"),
        pytest.param(model_ratings((0.0, 100.0)), id="ratings"),
        pytest.param(kappas(0.8, 0.5), id="kappa"),
        pytest.param(pair_means(0.5), id="self-BLEU"),
        pytest.param(token_means(2.0), id="nats per token"),
        pytest.param(subset_means((0.5, 0.9)), id="best-of-n"),
        pytest.param(over_seeds(Arms(3, (40.0, 40.0))), id="ratings over seeds"),
    ],
)
def test_intervals_hold_the_truth(simulate: Simulation) -> None:
    # Of 100 intervals of 95 %, 87 or fewer hold it with a probability of 0.2 %. Independent judgements give about 80.
    assert Scenario("", "", 40, simulate).coverage(100, 200, seed=3) > 0.87

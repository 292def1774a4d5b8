"""Accuracy, calibration and bias figures against hand computations and independent fits."""

import math
import random

import numpy as np
import pytest
from charter.evaluation.judge.calibration import (
    calibration_error_by_chance,
    calibration_of,
    correctness,
    expected_calibration_error,
    length_slope,
    position_bias_rate,
    reliability_bins,
    shorter_is_better_accuracy,
)
from hypothesis import given
from hypothesis import strategies as st


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_calibration_error_of_chance_is_that_of_labels_drawn_from_the_predictions() -> None:
    # One prediction in a bin: the distance to its own label is 2 p (1 - p) on average.
    assert calibration_error_by_chance([0.9], samples=20_000) == pytest.approx(2 * 0.9 * 0.1, abs=0.01)
    draw = np.random.default_rng(3)
    predicted = draw.uniform(0, 1, 300)
    measured = [
        expected_calibration_error(reliability_bins(predicted, (draw.random(300) < predicted).astype(np.float64)))
        for _ in range(200)
    ]
    assert calibration_error_by_chance(predicted) == pytest.approx(float(np.mean(measured)), rel=0.05)
    assert calibration_error_by_chance(np.repeat(predicted, 100)) < 0.2 * calibration_error_by_chance(predicted)


def test_calibration_of_a_table_worked_by_hand() -> None:
    # Confidences 0.9, 0.8, 0.6, 0.7; right, wrong, right, right.
    found = calibration_of([0.9, 0.2, 0.6, 0.3], [1.0, 1.0, 1.0, 0.0], ["p", "p", "q", "r"], bins=5)
    assert found.pairs == 4
    assert found.accuracy == 0.75
    assert found.brier == pytest.approx((0.1**2 + 0.8**2 + 0.4**2 + 0.3**2) / 4)
    # Bins of width 0.1: 0.6 and 0.7 may fall to either neighbour of an edge, so use the table itself for the rest.
    assert sum(entry.count for entry in found.bins) == 4
    assert found.expected_calibration_error == pytest.approx((0.1 + 0.8 + 0.4 + 0.3) / 4)


def test_bins_hold_their_confidences() -> None:
    table = reliability_bins([0.55, 0.44, 0.97, 0.01, 1.0], [1, 1, 1, 0, 0], bins=5)
    assert [(entry.lower, entry.count) for entry in table] == [(0.5, 2), (0.9, 3)]
    low, high = table
    assert low.mean_predicted == pytest.approx((0.55 + 0.56) / 2)
    assert low.mean_observed == 0.5
    assert high.mean_observed == pytest.approx(2 / 3)
    assert expected_calibration_error(table) == pytest.approx(
        2 / 5 * abs(0.555 - 0.5) + 3 / 5 * abs((0.97 + 0.99 + 1) / 3 - 2 / 3)
    )


def test_ties_of_prediction_and_label_count_half() -> None:
    assert correctness([0.5, 0.5, 0.8, 0.8], [1.0, 0.0, 0.5, 0.7]).tolist() == [0.5, 0.5, 0.5, 1.0]


def test_swapping_every_pair_changes_no_figure() -> None:
    draw = random.Random(1)
    probabilities = [draw.random() for _ in range(60)]
    labels = [float(draw.random() < p) for p in probabilities]
    groups = [str(index % 7) for index in range(60)]
    straight = calibration_of(probabilities, labels, groups)
    swapped = calibration_of([1 - p for p in probabilities], [1 - y for y in labels], groups)
    assert swapped.accuracy == pytest.approx(straight.accuracy)
    assert swapped.brier == pytest.approx(straight.brier)
    assert swapped.expected_calibration_error == pytest.approx(straight.expected_calibration_error)


def test_interval_resamples_prompts_not_pairs() -> None:
    # Two prompts with fifty pairs each, one all right, one all wrong: of two prompts nearly anything can be.
    found = calibration_of([0.9] * 100, [1.0] * 50 + [0.0] * 50, ["right"] * 50 + ["wrong"] * 50)
    assert found.accuracy == 0.5
    assert found.accuracy_low < 0.1
    assert found.accuracy_high > 0.9


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=50))
def test_figures_stay_in_range(pairs: list[tuple[float, float]]) -> None:
    found = calibration_of([p for p, _ in pairs], [y for _, y in pairs], ["g"] * len(pairs), bootstrap_samples=10)
    for figure in (found.accuracy, found.brier, found.expected_calibration_error):
        assert 0 <= figure <= 1
    assert sum(entry.count for entry in found.bins) == len(pairs)


@pytest.mark.parametrize(
    ("probabilities", "labels", "groups", "message"),
    [
        ([], [], [], "no pairs"),
        ([0.5], [1.0, 0.0], ["a"], "1 probabilities but 2 labels"),
        ([0.5], [1.0], ["a", "b"], "2 groups"),
        ([1.5], [1.0], ["a"], "probabilities must lie"),
        ([0.5], [math.nan], ["a"], "labels must lie"),
    ],
)
def test_wrong_input_is_refused(
    probabilities: list[float], labels: list[float], groups: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_of(probabilities, labels, groups)


def test_position_bias_counts_the_same_position_winning_twice() -> None:
    # First position twice, second position twice, A twice, B twice, one undecided.
    assert position_bias_rate([0.9, 0.1, 0.8, 0.3, 0.5], [0.2, 0.7, 0.9, 0.4, 0.1]) == pytest.approx(2 / 5)


def test_shorter_is_better_baseline() -> None:
    assert shorter_is_better_accuracy([5, 9, 4, 4], [7, 3, 4, 8], [1.0, 1.0, 0.0, 1.0]) == (1 + 0 + 0.5 + 1) / 4


def test_length_slope_is_the_gain_from_doubling_the_length() -> None:
    lengths_a, lengths_b = [2, 4, 8, 3], [1, 1, 16, 3]
    probabilities = [0.5 + 0.07 * math.log2(a / b) for a, b in zip(lengths_a, lengths_b, strict=True)]
    assert length_slope(lengths_a, lengths_b, probabilities) == pytest.approx(0.07)
    assert length_slope(lengths_b, lengths_a, [1 - p for p in probabilities]) == pytest.approx(0.07)
    assert length_slope([5], [5], [0.9]) == 0

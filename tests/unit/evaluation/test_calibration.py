"""Accuracy, calibration and bias figures against hand computations and independent fits."""

import math
import random

import numpy as np
import pytest
from charter.evaluation.judge.calibration import (
    calibration_error_by_chance,
    calibration_of,
    correctness,
    cross_entropy,
    expected_calibration_error,
    fit_contrast,
    fit_sharpness,
    fit_temperature,
    fit_temperature_and_position_bias,
    fit_weights,
    length_slope,
    position_bias_rate,
    reliability_bins,
    shorter_is_better_accuracy,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize


def test_weights_of_a_mix_are_found_and_useless_features_get_little() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(4000, 4)) * [1.0, 5.0, 0.1, 1.0]
    features[:, 3] = 0.0
    truth = np.array([1.5, 0.0, -10.0, 0.0])
    labels = (draw.uniform(size=4000) < 1 / (1 + np.exp(-features @ truth))).astype(float)
    groups = [f"prompt {index // 4}" for index in range(4000)]
    weights = fit_weights(features.tolist(), labels.tolist(), groups)
    assert weights[0] == pytest.approx(1.5, abs=0.2)
    assert weights[1] == pytest.approx(0, abs=0.03)
    assert weights[2] == pytest.approx(-10, abs=1.5)
    assert weights[3] == 0.0
    # Exchanging the answers of every pair is the same data.
    exchanged = fit_weights((-features).tolist(), (1 - labels).tolist(), groups)
    assert weights == pytest.approx(exchanged, rel=1e-4, abs=1e-6)


def test_a_cautious_mean_is_sharpened() -> None:
    draw = np.random.default_rng(2)
    truth = draw.normal(size=20_000) * 2
    labels = (draw.uniform(size=20_000) < 1 / (1 + np.exp(-truth))).astype(float).tolist()
    assert fit_sharpness(lambda factor: (1 / (1 + np.exp(-factor * truth / 3))).tolist(), labels) == pytest.approx(
        3, rel=0.05
    )


def test_weights_of_noise_are_held_small() -> None:
    draw = np.random.default_rng(1)
    features, labels = draw.normal(size=(60, 5)), draw.integers(0, 2, 60).astype(float)
    groups = [f"{index}" for index in range(60)]
    assert np.abs(fit_weights(features.tolist(), labels.tolist(), groups)).max() < 0.3


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
    # Two prompts with fifty pairs each, one all right, one all wrong: by prompt anything from 0 to 1 can come.
    found = calibration_of([0.9] * 100, [1.0] * 50 + [0.0] * 50, ["right"] * 50 + ["wrong"] * 50)
    assert (found.accuracy, found.accuracy_low, found.accuracy_high) == (0.5, 0.0, 1.0)


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


def test_cross_entropy_is_that_of_the_probabilities() -> None:
    logits, labels = [-2.0, 0.5, 3.0], [0.0, 0.3, 1.0]
    expected = -np.mean(
        [y * math.log(sigmoid(x)) + (1 - y) * math.log(1 - sigmoid(x)) for x, y in zip(logits, labels, strict=True)]
    )
    assert cross_entropy(logits, labels) == pytest.approx(expected)
    assert math.isfinite(cross_entropy([1000.0], [0.5]))


def test_cross_entropy_with_labels_that_are_wrong_whatever_the_evidence() -> None:
    logits, labels, lapse = [-2.0, 0.5, 30.0], [0.0, 0.3, 0.0], 0.1
    said = [lapse + (1 - 2 * lapse) * sigmoid(x) for x in logits]
    expected = -np.mean([y * math.log(p) + (1 - y) * math.log(1 - p) for p, y in zip(said, labels, strict=True)])
    assert cross_entropy(logits, labels, lapse) == pytest.approx(expected)


def test_fits_with_a_lapse_recover_what_made_the_labels() -> None:
    draw = np.random.default_rng(3)
    follow, oppose = draw.normal(size=(2, 40_000))

    def labels_of(logits: np.ndarray) -> list[float]:
        chances = 0.1 + 0.8 / (1 + np.exp(-logits))
        return [float(number) for number in draw.random(40_000) < chances]

    temperature, oppose_weight = fit_contrast(follow, oppose, labels_of((follow - 0.6 * oppose) / 0.2), lapse=0.1)
    assert (temperature, oppose_weight) == pytest.approx((0.2, 0.6), rel=0.1)
    temperature, bias = fit_temperature_and_position_bias(
        (follow + 2).tolist(), (follow - 2).tolist(), labels_of(follow / 0.5), lapse=0.1
    )
    assert (temperature, bias) == pytest.approx((0.5, 2.0), rel=0.1)
    groups = [f"prompt {index // 100}" for index in range(40_000)]
    features = np.stack([follow, oppose], axis=1).tolist()
    weights = fit_weights(features, labels_of(5 * follow - 3 * oppose), groups, lapse=0.1)
    assert weights == pytest.approx((5, -3), rel=0.1)


def test_temperature_is_recovered_from_samples_of_a_known_one() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=20_000)
    labels = (draw.random(20_000) < 1 / (1 + np.exp(-logits / 0.25))).astype(float)
    assert fit_temperature(logits.tolist(), labels.tolist()) == pytest.approx(0.25, rel=0.05)


def test_temperature_without_signal_makes_every_probability_a_half() -> None:
    logits = [1.0, -1.0, 2.0, -2.0]
    temperature = fit_temperature(logits, [0.0, 1.0, 0.0, 1.0])
    assert max(abs(sigmoid(logit / temperature) - 0.5) for logit in logits) < 1e-3


def test_position_bias_is_recovered_from_samples() -> None:
    draw = np.random.default_rng(1)
    quality = draw.normal(size=20_000)
    labels = (draw.random(20_000) < 1 / (1 + np.exp(-quality))).astype(float)
    # The judge reads twice the quality and adds 3 to whatever stands first.
    temperature, bias = fit_temperature_and_position_bias(
        (2 * quality + 3).tolist(), (2 * quality - 3).tolist(), labels.tolist()
    )
    assert bias == pytest.approx(3.0, abs=0.05)
    assert temperature == pytest.approx(2.0, rel=0.05)


def test_contrast_fit_is_the_logistic_regression_without_intercept() -> None:
    draw = np.random.default_rng(2)
    follow, oppose = draw.normal(size=(2, 500))
    labels = (draw.random(500) < 1 / (1 + np.exp(-(3 * follow - 2 * oppose)))).astype(float)
    temperature, oppose_weight = fit_contrast(follow.tolist(), oppose.tolist(), labels.tolist())

    def loss(coefficients: np.ndarray) -> float:
        return cross_entropy(coefficients[0] * follow + coefficients[1] * oppose, labels)

    expected = minimize(loss, np.zeros(2), method="BFGS").x
    assert 1 / temperature == pytest.approx(expected[0], rel=1e-3)
    assert -oppose_weight / temperature == pytest.approx(expected[1], rel=1e-3)

"""Fits of a judge's calibration against independent fits and known truths."""

import math

import numpy as np
import pytest
from charter.evaluation.judge.fits import (
    choose_penalty,
    cross_entropy,
    fit_contrast,
    fit_sharpness,
    fit_temperature_and_position_bias,
    fit_weights,
    platt_targets,
)
from scipy.optimize import minimize


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_weights_of_a_mix_are_found_and_useless_features_get_little() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(4000, 4)) * [1.0, 5.0, 0.1, 1.0]
    features[:, 3] = 0.0
    truth = np.array([1.5, 0.0, -10.0, 0.0])
    labels = (draw.uniform(size=4000) < 1 / (1 + np.exp(-features @ truth))).astype(float)
    groups = [f"prompt {index // 4}" for index in range(4000)]
    penalty = choose_penalty(features, labels, groups)
    weights = fit_weights(features.tolist(), labels.tolist(), penalty)
    assert weights[0] == pytest.approx(1.5, abs=0.2)
    assert weights[1] == pytest.approx(0, abs=0.03)
    assert weights[2] == pytest.approx(-10, abs=1.5)
    assert weights[3] == 0.0
    # Exchanging the answers of every pair is the same data.
    assert choose_penalty(-features, 1 - labels, groups) == penalty
    exchanged = fit_weights((-features).tolist(), (1 - labels).tolist(), penalty)
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
    assert np.abs(fit_weights(features, labels, choose_penalty(features, labels, groups))).max() < 0.3


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
    features, labels = np.stack([follow, oppose], axis=1), labels_of(5 * follow - 3 * oppose)
    weights = fit_weights(features, labels, 1e-4, lapse=0.1)
    assert weights == pytest.approx((5, -3), rel=0.1)


def test_leads_without_signal_make_every_probability_a_half() -> None:
    follow, oppose = [1.0, -1.0, 2.0, -2.0], [0.5, -0.5, 1.0, -1.0]
    temperature, weight = fit_contrast(follow, oppose, [0.0, 1.0, 0.0, 1.0])
    logits = [(one - weight * other) / temperature for one, other in zip(follow, oppose, strict=True)]
    assert max(abs(sigmoid(logit) - 0.5) for logit in logits) < 1e-3


@pytest.mark.parametrize("prompts", [1, 8, 500])
def test_targets_are_the_rule_of_succession(prompts: int) -> None:
    """Laplace's: after n labels of one kind, the next is of that kind with probability (n + 1) / (n + 2)."""
    low, middle, high = platt_targets([0.0, 0.5, 1.0], prompts)
    assert high == pytest.approx((prompts + 1) / (prompts + 2))
    assert (low, middle) == pytest.approx((1 - high, 0.5))


def test_separable_pairs_do_not_make_labels_certain() -> None:
    follow, oppose = np.array([1.0, -0.5, 0.7, -1.2, 0.9, -0.8, 1.1, -0.6]), np.zeros(8)
    labels = (follow > 0).astype(float)
    without, _ = fit_contrast(follow, oppose, labels)
    temperature, _ = fit_contrast(follow, oppose, platt_targets(labels, 8))
    assert sigmoid(0.5 / without) > 1 - 1e-6
    # All are right: the mean of what is said of the better answer is near (8 + 1) / (8 + 2).
    assert np.mean([sigmoid(abs(lead) / temperature) for lead in follow]) == pytest.approx(0.9, abs=0.03)


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

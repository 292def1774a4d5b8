"""Fits of what makes a probability of a judge's evidence: pure functions on arrays of numbers.

A logit is the log-odds of A, a label 1 for A, 0 for B, or a soft value between them. Every fit is odd: exchanging the
answers of a pair and its label changes nothing.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from charter.evaluation.judge.calibration import Array, checked

# Temperatures are searched within exp(-LOG_RANGE) .. exp(LOG_RANGE): wider is saturated or flat in float64 anyway.
_LOG_RANGE = 12.0
# An ensemble is made sharper or softer by at most this, as a logarithm.
_LOG_SHARPNESS = 3.0
# Parts of the prompts that are left out in turn to choose the ridge penalty, and the penalties tried.
_FOLDS = 5
_PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# Shares of labels that are wrong whatever the evidence: those that a fit tries.
LAPSES = (0.0, 0.05, 0.1, 0.15, 0.2)


def platt_targets(labels: Sequence[float] | Array, prompts: int) -> Array:
    """Labels [pairs] as a fit aims at them: ``(n + 1) / (n + 2)`` for 1 and ``1 / (n + 2)`` for 0.

    Platt's targets (Platt 1999, section 2.2; Lin, Lin and Weng 2007, equation 5): the labels after n of their kind were
    seen from a uniform prior, so that a few pairs that happen to be separable do not make every later label certain. A
    pair and its exchange are one sample of either kind, and pairs of one prompt are not independent: n is the number of
    ``prompts``.
    """
    share = 1.0 / (prompts + 2.0)
    return share + (1.0 - 2.0 * share) * np.asarray(labels, dtype=np.float64)


def cross_entropy(logits: Sequence[float] | Array, labels: Sequence[float] | Array, lapse: float = 0.0) -> float:
    """Mean of ``-y log p(x) - (1 - y) log p(-x)`` in nats; logits and labels have shape [pairs].

    ``p(x)`` is ``lapse + (1 - 2 lapse) sigmoid(x)``: a share of the labels, ``lapse``, is wrong however clear the
    evidence is. (The lapse rate of psychometric functions, Wichmann and Hill 2001, equation 1, for two alternatives.)
    """
    scores = np.asarray(logits, dtype=np.float64)
    observed = np.asarray(labels, dtype=np.float64)
    losses = [
        -np.log(lapse + (1.0 - 2.0 * lapse) * _sigmoid(x)) if lapse else np.logaddexp(0.0, -x)
        for x in (scores, -scores)
    ]
    return float(np.mean(observed * losses[0] + (1.0 - observed) * losses[1]))


def fit_temperature_and_position_bias(
    first_logits: Sequence[float] | Array,
    second_logits: Sequence[float] | Array,
    labels: Sequence[float] | Array,
    lapse: float = 0.0,
) -> tuple[float, float]:
    """Temperature and position bias of a judge that sees both answers at once.

    ``first_logits`` [pairs] are the log-odds of A when A was shown first, ``second_logits`` when it was shown second.
    The judge's bias b towards the first position adds to the one and is taken from the other: b is half of the median
    difference. T is then the temperature that makes the mean of ``sigmoid((first - b) / T)`` and
    ``sigmoid((second + b) / T)`` fit the labels best (Guo et al. 2017, section 4.2). Swapping a pair still gives the
    complement exactly.
    """
    first, observed = _checked_logits(first_logits, labels)
    second, _ = _checked_logits(second_logits, labels)
    bias = float(np.median(first - second)) / 2.0

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        mean = (_sigmoid((first - bias) / temperature) + _sigmoid((second + bias) / temperature)) / 2.0
        # Far below what any label can cost at a sensible temperature.
        mean = np.clip(lapse + (1.0 - 2.0 * lapse) * mean, 1e-12, 1.0 - 1e-12)
        return float(-np.mean(observed * np.log(mean) + (1.0 - observed) * np.log1p(-mean)))

    return float(np.exp(_minimum(loss, -_LOG_RANGE, _LOG_RANGE))), bias


def fit_contrast(
    follow: Sequence[float] | Array,
    oppose: Sequence[float] | Array,
    labels: Sequence[float] | Array,
    lapse: float = 0.0,
) -> tuple[float, float]:
    """Temperature T and weight w that make ``sigmoid((follow - w * oppose) / T)`` fit the labels best.

    ``follow`` and ``oppose`` [pairs] are A's lead over B under a principle and under its opposite. This is logistic
    regression on two features without an intercept, so that swapping a pair gives the complement. w stays in [0, 1]:
    between the likelihood under the principle alone and the full contrast. Where the leads carry no signal, or point
    the wrong way, T grows to the end of the search and every probability goes to 0.5, which is then the right answer.
    """
    ahead, behind = np.asarray(follow, dtype=np.float64), np.asarray(oppose, dtype=np.float64)
    _checked_logits(behind, labels)
    scores, observed = _checked_logits(ahead, labels)
    # With weights of at least 0 for the full contrast and for `follow` alone, w is the share of the former: the region
    # is a box, in which the loss is convex but for the lapse.
    contrast, alone = _minimum_of_weights(
        np.stack([scores - behind, scores], axis=1), observed, 0.0, lapse, bounds=(0.0, math.exp(_LOG_RANGE))
    ).tolist()
    sharpness = max(contrast + alone, math.exp(-_LOG_RANGE))
    return 1.0 / sharpness, contrast / sharpness


def fit_weights(
    features: Sequence[Sequence[float]] | Array, labels: Sequence[float] | Array, penalty: float, lapse: float = 0.0
) -> tuple[float, ...]:
    """Weights w that make ``sigmoid(features @ w)`` fit the labels: logistic regression without an intercept.

    Shapes: [pairs, features], [pairs] -> [features]. Without an intercept, features that change their sign when a pair
    is swapped give complementary probabilities. ``penalty`` is that of the ridge, on features scaled to unit size
    (``choose_penalty``). A feature that is always 0 gets the weight 0.
    """
    table, observed = _checked_features(features), np.asarray(labels, dtype=np.float64)
    return tuple(_minimum_of_weights(table, observed, penalty, lapse).tolist())


def choose_penalty(
    features: Sequence[Sequence[float]] | Array,
    labels: Sequence[float] | Array,
    groups: Sequence[str],
    lapse: float = 0.0,
) -> float:
    """The ridge penalty of a fixed grid that predicts best the prompts (``groups``) left out, a fifth at a time."""
    table, observed = _checked_features(features), np.asarray(labels, dtype=np.float64)
    folds = left_out(groups)

    def left_out_loss(penalty: float) -> float:
        losses = np.zeros(len(observed))
        for out in folds:
            weights = _minimum_of_weights(table[~out], observed[~out], penalty, lapse)
            losses[out] = cross_entropy(table[out] @ weights, observed[out], lapse)
        return float(losses.mean())

    return min(_PENALTIES, key=left_out_loss) if folds else _PENALTIES[-1]


def left_out(groups: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Which of the samples are left out in turn, bool [samples] each: a fifth of the prompts; none of a single one."""
    names = {name: index for index, name in enumerate(sorted(set(groups)))}
    part = np.array([names[group] % _FOLDS for group in groups])
    return [part == index for index in range(min(_FOLDS, len(names)))] if len(names) > 1 else []


def fit_sharpness(probabilities_at: Callable[[float], Sequence[float]], labels: Sequence[float] | Array) -> float:
    """The factor on all log-odds at which probabilities fit the labels best.

    ``probabilities_at(factor)`` [pairs] are those with every log-odds multiplied by it. For means of probabilities,
    which are less sure than their parts: each part calibrated by itself leaves the mean too cautious.
    """
    observed = np.asarray(labels, dtype=np.float64)

    def loss(log_factor: float) -> float:
        predicted = np.clip(probabilities_at(float(np.exp(log_factor))), 1e-12, 1.0 - 1e-12)
        return float(-np.mean(observed * np.log(predicted) + (1.0 - observed) * np.log1p(-predicted)))

    return float(np.exp(_minimum(loss, -_LOG_SHARPNESS, _LOG_SHARPNESS)))


def _minimum_of_weights(
    features: Array,
    labels: Array,
    penalty: float,
    lapse: float,
    bounds: tuple[float | None, float | None] = (None, None),
) -> Array:
    """Weights at the minimum of the mean cross-entropy plus ``penalty / 2 * |w|^2``, each within ``bounds``.

    The penalty is on features scaled to unit size. A convex function without a lapse.
    """
    # Imported here for the reason that _minimum gives.
    from scipy.optimize import minimize

    size = np.sqrt(np.mean(features**2, axis=0))
    size[size == 0] = 1.0
    scaled = features / size

    def loss(weights: Array) -> tuple[float, Array]:
        logits = scaled @ weights
        sure = _sigmoid(logits)
        slope = sure - labels
        if lapse:
            p = lapse + (1.0 - 2.0 * lapse) * sure
            slope = (p - labels) / (p * (1.0 - p)) * (1.0 - 2.0 * lapse) * sure * (1.0 - sure)
        gradient = scaled.T @ slope / len(labels) + penalty * weights
        return cross_entropy(logits, labels, lapse) + penalty / 2 * float(weights @ weights), gradient

    low, high = bounds
    box = [(low and low * one, high and high * one) for one in size]
    found = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B", bounds=box, options={"gtol": 1e-9})
    weights: Array = np.asarray(found.x, dtype=np.float64) / size
    return weights


def _minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    # Imported here: it takes longer than all else that a command of the CLI imports.
    from scipy.optimize import minimize_scalar

    return float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5}).x)


def _sigmoid(logits: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)), dtype=np.float64)


def _checked_logits(logits: Sequence[float] | Array, labels: Sequence[float] | Array) -> tuple[Array, Array]:
    scores = np.asarray(logits, dtype=np.float64)
    if not bool(np.all(np.isfinite(scores))):
        raise ValueError("logits must be finite")
    _, observed = checked(_sigmoid(scores), labels)
    return scores, observed


def _checked_features(features: Sequence[Sequence[float]] | Array) -> Array:
    table = np.asarray(features, dtype=np.float64)
    if not bool(np.all(np.isfinite(table))):
        raise ValueError("features must be finite")
    return table

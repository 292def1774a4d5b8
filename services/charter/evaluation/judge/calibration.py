"""How right, how sure and how biased predicted preferences are: pure functions on arrays of numbers.

Throughout, a probability is P(answer A is better), and a label is 1 for A, 0 for B, or a soft value between them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from charter.evaluation.statistics import bootstrap_interval
from charter.outcomes import lead, same_position_wins, side
from charter.runs.results import Calibration, ReliabilityBin

Array = NDArray[np.float64]

# Temperatures are searched within exp(-LOG_RANGE) .. exp(LOG_RANGE): wider is saturated or flat in float64 anyway.
_LOG_RANGE = 12.0
# An ensemble is made sharper or softer by at most this, as a logarithm.
_LOG_SHARPNESS = 3.0
# Parts of the prompts that are left out in turn to choose the ridge penalty, and the penalties tried.
_FOLDS = 5
_PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# Shares of labels that are wrong whatever the evidence: those that a fit tries.
LAPSES = (0.0, 0.05, 0.1, 0.15, 0.2)


def calibration_of(
    probabilities: Sequence[float],
    labels: Sequence[float],
    groups: Sequence[str],
    *,
    bins: int = 10,
    bootstrap_samples: int = 2000,
    seed: int = 0,
) -> Calibration:
    """Accuracy with a 95 % interval, Brier score and expected calibration error of predicted preferences.

    ``groups`` names the prompt of each pair: the bootstrap resamples prompts, because the pairs of one prompt are not
    independent. Accuracy is the share of pairs whose label lies on the predicted side; where prediction or label is a
    tie, a pair counts half. All three sequences have shape [pairs]. Raises ``ValueError`` when they are empty, differ
    in length or leave [0, 1].
    """
    predicted, observed = _checked(probabilities, labels)
    if len(groups) != len(predicted):
        raise ValueError(f"{len(predicted)} probabilities but {len(groups)} groups")
    right = correctness(predicted, observed)
    low, high = bootstrap_interval(right, groups, samples=bootstrap_samples, seed=seed, bounds=(0, 1))
    table = reliability_bins(predicted, observed, bins=bins)
    return Calibration(
        pairs=len(predicted),
        accuracy=float(right.mean()),
        accuracy_low=low,
        accuracy_high=high,
        brier=float(np.mean((predicted - observed) ** 2)),
        expected_calibration_error=expected_calibration_error(table),
        bins=table,
    )


def correctness(probabilities: Sequence[float] | Array, labels: Sequence[float] | Array) -> Array:
    """1 where prediction and label prefer the same answer, 0 where opposite ones, 0.5 where either is a tie.

    Shapes: [pairs], [pairs] -> [pairs].
    """
    predicted, observed = _checked(probabilities, labels)
    return np.asarray((1.0 + side(predicted) * side(observed)) / 2.0, dtype=np.float64)


def reliability_bins(
    probabilities: Sequence[float] | Array, labels: Sequence[float] | Array, *, bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Confidence in the predicted answer, ``max(p, 1 - p)``, against how often that answer was the better one.

    ``bins`` equal bins over [0.5, 1], the last one closed; empty bins are left out. Confidence is used and not P(A),
    because which answer is called A is arbitrary. A soft label counts with its own share.
    """
    predicted, observed = _checked(probabilities, labels)
    confidence, place = _confidence(predicted, bins)
    # A tie predicts no answer: either would be right half of the time.
    share_right = 0.5 + side(predicted) * lead(observed)
    edges = _edges(bins)
    table = []
    for index in range(bins):
        inside = place == index
        if inside.any():
            table.append(
                ReliabilityBin(
                    lower=float(edges[index]),
                    upper=float(edges[index + 1]),
                    count=int(inside.sum()),
                    mean_predicted=float(confidence[inside].mean()),
                    mean_observed=float(share_right[inside].mean()),
                )
            )
    return tuple(table)


def expected_calibration_error(table: Sequence[ReliabilityBin]) -> float:
    """Mean distance of confidence and observed share, weighted by the bins' counts (Guo et al. 2017, equation 3)."""
    total = sum(entry.count for entry in table)
    return sum(entry.count * abs(entry.mean_predicted - entry.mean_observed) for entry in table) / total


def calibration_error_by_chance(
    probabilities: Sequence[float] | Array, *, bins: int = 10, samples: int = 500, seed: int = 0
) -> float:
    """The expected calibration error that perfectly calibrated predictions would show on so many pairs.

    Few labels in a bin scatter around their mean, and the error counts the distance whichever way: it is above 0 for
    any finite sample, and a measured one near this value tells of no miscalibration. The mean over ``samples`` draws of
    hard labels from the probabilities [pairs] themselves, each pair on its own: the labels of one prompt go together,
    so that the true value is rather larger. (Consistency resampling, Broecker and Smith 2007.)
    """
    predicted, _ = _checked(probabilities, probabilities)
    confidence, place = _confidence(predicted, bins)
    right = np.random.default_rng(seed).random((samples, len(confidence))) < confidence
    in_bin = np.eye(bins)[place]
    return float(np.abs((confidence - right) @ in_bin).sum(axis=1).mean() / len(confidence))


def position_bias_rate(shown_first: Sequence[float], shown_second: Sequence[float]) -> float:
    """Share of pairs in which the same position wins in both orders.

    ``shown_first`` [pairs] is P(A is better) when A was shown first, ``shown_second`` when it was shown second.
    """
    return float(np.mean(list(map(same_position_wins, *_checked(shown_first, shown_second)))))


def shorter_is_better_accuracy(lengths_a: Sequence[int], lengths_b: Sequence[int], labels: Sequence[float]) -> float:
    """Accuracy of always preferring the shorter answer; equal lengths count half. Lengths in any one unit, [pairs]."""
    difference = np.asarray(lengths_b, dtype=np.float64) - np.asarray(lengths_a, dtype=np.float64)
    return float(correctness((1.0 + np.sign(difference)) / 2.0, labels).mean())


def length_slope(lengths_a: Sequence[int], lengths_b: Sequence[int], probabilities: Sequence[float]) -> float:
    """How much P(A is better) grows when A is twice as long as B: 0 without a length bias, below 0 towards the shorter.

    Least squares of ``P - 0.5`` on ``log2(length A / length B)`` through the origin, so that exchanging the answers
    changes nothing. Lengths in any one unit, [pairs]; an empty answer counts as one unit. 0 when all lengths are equal.
    """
    ratio = np.log2(np.maximum(lengths_a, 1)) - np.log2(np.maximum(lengths_b, 1))
    spread = float(ratio @ ratio)
    return float(ratio @ (np.asarray(probabilities, dtype=np.float64) - 0.5)) / spread if spread else 0.0


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


def fit_temperature(logits: Sequence[float] | Array, labels: Sequence[float], lapse: float = 0.0) -> float:
    """Temperature T that makes ``sigmoid(logits / T)`` fit the labels best (Guo et al. 2017, section 4.2).

    Logits are the log-odds of A before any temperature, [pairs]. When they carry no signal, or point the wrong way, T
    grows to the end of the search and every probability goes to 0.5, which is then the right answer.
    """
    scores, observed = _checked_logits(logits, labels)
    return float(
        np.exp(
            _minimum(
                lambda logarithm: cross_entropy(scores / np.exp(logarithm), observed, lapse), -_LOG_RANGE, _LOG_RANGE
            )
        )
    )


def fit_temperature_and_position_bias(
    first_logits: Sequence[float], second_logits: Sequence[float], labels: Sequence[float], lapse: float = 0.0
) -> tuple[float, float]:
    """Temperature and position bias of a judge that sees both answers at once.

    ``first_logits`` [pairs] are the log-odds of A when A was shown first, ``second_logits`` when it was shown second.
    The judge's bias b towards the first position adds to the one and is taken from the other: b is half of the median
    difference. T is then the temperature that makes the mean of ``sigmoid((first - b) / T)`` and
    ``sigmoid((second + b) / T)`` fit the labels best. Swapping a pair still gives the complement exactly.
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
    follow: Sequence[float], oppose: Sequence[float], labels: Sequence[float], lapse: float = 0.0
) -> tuple[float, float]:
    """Temperature T and weight w that make ``sigmoid((follow - w * oppose) / T)`` fit the labels best.

    ``follow`` and ``oppose`` [pairs] are A's lead over B under a principle and under its opposite. This is logistic
    regression on two features without an intercept, so that swapping a pair gives the complement. w stays in [0, 1]:
    between the likelihood under the principle alone and the full contrast.
    """
    ahead, behind = np.asarray(follow, dtype=np.float64), np.asarray(oppose, dtype=np.float64)
    _checked_logits(behind, labels)
    observed = np.asarray(labels, dtype=np.float64)

    def loss_of(weight: float) -> float:
        contrast = ahead - weight * behind
        return cross_entropy(contrast / fit_temperature(contrast, labels, lapse), observed, lapse)

    weight = _minimum(loss_of, 0.0, 1.0)
    return fit_temperature(ahead - weight * behind, labels, lapse), weight


def fit_weights(
    features: Sequence[Sequence[float]], labels: Sequence[float], groups: Sequence[str], lapse: float = 0.0
) -> tuple[float, ...]:
    """Weights w that make ``sigmoid(features @ w)`` fit the labels: logistic regression without an intercept.

    Shapes: [pairs, features], [pairs], [pairs] -> [features]. Without an intercept, features that change their sign
    when a pair is swapped give complementary probabilities. The ridge penalty, on features scaled to unit size, is the
    one of a fixed grid that predicts best the prompts (``groups``) left out, a fifth of them at a time. A feature that
    is always 0 gets the weight 0.
    """
    table = np.asarray(features, dtype=np.float64)
    observed = np.asarray(labels, dtype=np.float64)
    if not bool(np.all(np.isfinite(table))):
        raise ValueError("features must be finite")
    size = np.sqrt(np.mean(table**2, axis=0))
    size[size == 0] = 1.0
    scaled = table / size
    folds = left_out(groups)

    def left_out_loss(penalty: float) -> float:
        losses = np.zeros(len(observed))
        for out in folds:
            logits = scaled[out] @ _ridge(scaled[~out], observed[~out], penalty, lapse)
            losses[out] = cross_entropy(logits, observed[out], lapse)
        return float(losses.mean())

    penalty = min(_PENALTIES, key=left_out_loss) if folds else _PENALTIES[-1]
    return tuple(float(weight) for weight in _ridge(scaled, observed, penalty, lapse) / size)


def left_out(groups: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Which of the samples are left out in turn, bool [samples] each: a fifth of the prompts; none of a single one."""
    names = {name: index for index, name in enumerate(sorted(set(groups)))}
    part = np.array([names[group] % _FOLDS for group in groups])
    return [part == index for index in range(min(_FOLDS, len(names)))] if len(names) > 1 else []


def _ridge(features: Array, labels: Array, penalty: float, lapse: float) -> Array:
    """Minimum of the mean cross-entropy plus ``penalty / 2 * |w|^2``, a convex function without a lapse."""

    # Imported here for the reason that _minimum gives.
    from scipy.optimize import minimize

    def loss(weights: Array) -> tuple[float, Array]:
        logits = features @ weights
        sure = _sigmoid(logits)
        slope = sure - labels
        if lapse:
            p = lapse + (1.0 - 2.0 * lapse) * sure
            slope = (p - labels) / (p * (1.0 - p)) * (1.0 - 2.0 * lapse) * sure * (1.0 - sure)
        gradient = features.T @ slope / len(labels) + penalty * weights
        return cross_entropy(logits, labels, lapse) + penalty / 2 * float(weights @ weights), gradient

    found = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-9})
    return np.asarray(found.x, dtype=np.float64)


def fit_sharpness(probabilities_at: Callable[[float], Sequence[float]], labels: Sequence[float]) -> float:
    """The factor on all log-odds at which probabilities fit the labels best.

    ``probabilities_at(factor)`` [pairs] are those with every log-odds multiplied by it. For means of probabilities,
    which are less sure than their parts: each part calibrated by itself leaves the mean too cautious.
    """
    observed = np.asarray(labels, dtype=np.float64)

    def loss(log_factor: float) -> float:
        predicted = np.clip(probabilities_at(float(np.exp(log_factor))), 1e-12, 1.0 - 1e-12)
        return float(-np.mean(observed * np.log(predicted) + (1.0 - observed) * np.log1p(-predicted)))

    return float(np.exp(_minimum(loss, -_LOG_SHARPNESS, _LOG_SHARPNESS)))


def _minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    # Imported here: it takes longer than all else that a command of the CLI imports.
    from scipy.optimize import minimize_scalar

    return float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5}).x)


def _edges(bins: int) -> Array:
    return np.linspace(0.5, 1.0, bins + 1)


def _confidence(predicted: Array, bins: int) -> tuple[Array, NDArray[np.intp]]:
    """Confidence in the predicted answer, and the bin that it falls in; both [pairs]."""
    confidence = np.maximum(predicted, 1.0 - predicted)
    return confidence, np.clip(np.searchsorted(_edges(bins), confidence, side="right") - 1, 0, bins - 1)


def _sigmoid(logits: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)), dtype=np.float64)


def _checked(probabilities: Sequence[float] | Array, labels: Sequence[float] | Array) -> tuple[Array, Array]:
    predicted = np.asarray(probabilities, dtype=np.float64)
    observed = np.asarray(labels, dtype=np.float64)
    if len(predicted) == 0:
        raise ValueError("no pairs to measure")
    if len(predicted) != len(observed):
        raise ValueError(f"{len(predicted)} probabilities but {len(observed)} labels")
    for name, values in (("probabilities", predicted), ("labels", observed)):
        # Written so that NaN fails too.
        if not bool(np.all((values >= 0.0) & (values <= 1.0))):
            raise ValueError(f"{name} must lie in [0, 1]")
    return predicted, observed


def _checked_logits(logits: Sequence[float] | Array, labels: Sequence[float]) -> tuple[Array, Array]:
    scores = np.asarray(logits, dtype=np.float64)
    if not bool(np.all(np.isfinite(scores))):
        raise ValueError("logits must be finite")
    _, observed = _checked(_sigmoid(scores), labels)
    return scores, observed

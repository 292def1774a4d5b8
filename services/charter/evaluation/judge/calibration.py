"""How right, how sure and how biased predicted preferences are: pure functions on arrays of numbers.

Throughout, a probability is P(answer A is better), and a label is 1 for A, 0 for B, or a soft value between them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from charter.evaluation.statistics import bootstrap_interval
from charter.outcomes import lead, same_position_wins, side
from charter.runs.results import Calibration, ReliabilityBin

Array = NDArray[np.float64]


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

    ``groups`` names the prompt of each pair: the bootstrap weighs prompts, because the pairs of one prompt are not
    independent. Accuracy is the share of pairs whose label lies on the predicted side; where prediction or label is a
    tie, a pair counts half. All three sequences have shape [pairs]. Raises ``ValueError`` when they are empty, differ
    in length or leave [0, 1].
    """
    predicted, observed = checked(probabilities, labels)
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
    predicted, observed = checked(probabilities, labels)
    return np.asarray((1.0 + side(predicted) * side(observed)) / 2.0, dtype=np.float64)


def reliability_bins(
    probabilities: Sequence[float] | Array, labels: Sequence[float] | Array, *, bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Confidence in the predicted answer, ``max(p, 1 - p)``, against how often that answer was the better one.

    ``bins`` equal bins over [0.5, 1], the last one closed; empty bins are left out. Confidence is used and not P(A),
    because which answer is called A is arbitrary. A soft label counts with its own share.
    """
    predicted, observed = checked(probabilities, labels)
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
    predicted, _ = checked(probabilities, probabilities)
    confidence, place = _confidence(predicted, bins)
    draw, in_bin = np.random.default_rng(seed), np.eye(bins)[place]
    errors = []
    for _ in range(samples):
        # One draw at a time: all of them would be samples times as large as the pairs.
        right = draw.random(len(confidence)) < confidence
        errors.append(np.abs((confidence - right) @ in_bin).sum())
    return float(np.mean(errors) / len(confidence))


def position_bias_rate(shown_first: Sequence[float], shown_second: Sequence[float]) -> float:
    """Share of pairs in which the same position wins in both orders.

    ``shown_first`` [pairs] is P(A is better) when A was shown first, ``shown_second`` when it was shown second.
    """
    return float(np.mean(list(map(same_position_wins, *checked(shown_first, shown_second)))))


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


def _edges(bins: int) -> Array:
    return np.linspace(0.5, 1.0, bins + 1)


def _confidence(predicted: Array, bins: int) -> tuple[Array, NDArray[np.intp]]:
    """Confidence in the predicted answer, and the bin that it falls in; both [pairs]."""
    confidence = np.maximum(predicted, 1.0 - predicted)
    return confidence, np.clip(np.searchsorted(_edges(bins), confidence, side="right") - 1, 0, bins - 1)


def checked(probabilities: Sequence[float] | Array, labels: Sequence[float] | Array) -> tuple[Array, Array]:
    """Both as arrays [pairs]. Raises ``ValueError`` when they are empty, differ in length or leave [0, 1]."""
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

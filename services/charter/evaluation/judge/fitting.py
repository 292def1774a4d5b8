"""Fits the calibration of a judge's method to labelled pairs, and says how sure its numbers are."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from charter.evaluation.judge.calibration import Array
from charter.evaluation.judge.fits import (
    LAPSES,
    choose_penalty,
    fit_contrast,
    fit_sharpness,
    fit_temperature_and_position_bias,
    fit_weights,
    left_out,
    platt_targets,
)
from charter.evaluation.judge.judged import LEAST_PROMPTS, JudgedPair, method_by, probability
from charter.judge.calibration import (
    Calibration,
    CalibrationSet,
    Evidence,
    MethodCalibration,
    MixCalibration,
    mix_features,
)
from charter.judge.methods.method import Method
from charter.outcomes import mean_probability

# What a fit moves, by the kind of evidence.
_PARAMETERS: Mapping[Evidence, tuple[str, ...]] = {
    Evidence.ORDERS: ("temperature", "position_bias", "lapse"),
    Evidence.LEADS: ("temperature", "oppose_weight", "lapse"),
    Evidence.MIX: (*MixCalibration().weights, "lapse"),
}
# Resamples of the prompts behind the interval of a parameter.
RESAMPLES = 100

Intervals = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted calibration, with 95 % intervals of its parameters by their names: of all pairs, of each dimension."""

    calibration: CalibrationSet
    intervals: Intervals
    intervals_by_dimension: Mapping[str, Intervals]


@dataclass(frozen=True, slots=True)
class _Samples:
    """What was found about each pair by each principle, with the pair's label and prompt."""

    method: Method
    evidence: Array
    labels: Array
    prompts: tuple[str, ...]

    def taken(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "_Samples":
        """Some of them, in any number."""
        prompts = tuple(np.asarray(self.prompts)[rows].tolist())
        return replace(self, evidence=self.evidence[rows], labels=self.labels[rows], prompts=prompts)


@dataclass(frozen=True, slots=True)
class _Part:
    """The fit of some pairs, and what was chosen on the way."""

    samples: _Samples
    calibration: Calibration
    # By each lapse that was tried, of each sample by a fit without its prompt, in nats [lapses, samples].
    losses: Array
    # Of the ridge, for a mix.
    penalty: float
    # On the log-odds of an ensemble.
    sharpness: float


def fit(judged: Sequence[JudgedPair]) -> CalibrationSet:
    """The calibration that makes the labels of these usable pairs most likely, of all and of each dimension.

    Principles of different dimensions need different temperatures. A dimension with few prompts gets none of its own.
    """
    return _calibration(_parts(judged))


def fit_with_intervals(judged: Sequence[JudgedPair], resamples: int) -> Fit:
    """As ``fit``, with what the parameters may be too: a percentile bootstrap by prompt.

    The penalty of a mix and the sharpness of an ensemble are held at what was chosen on all prompts.
    """
    parts = _parts(judged)
    intervals = {name: _intervals(part, resamples) for name, part in parts.items()}
    return Fit(_calibration(parts), intervals.pop(""), intervals)


def _parts(judged: Sequence[JudgedPair]) -> dict[str, _Part]:
    """The fit of all pairs, by the empty name, and of each dimension with enough prompts."""
    by_dimension: dict[str, list[JudgedPair]] = defaultdict(list)
    for one in judged:
        asked = {principle.dimension for principle in one.judgement.principles}
        if len(asked) == 1 and any(principle.evidence for principle in one.judgement.principles):
            by_dimension[asked.pop()].append(one)
    enough = {
        name: part
        for name, part in sorted(by_dimension.items())
        if name and len({one.pair.group for one in part}) >= LEAST_PROMPTS
    }
    return {name: _fit(part) for name, part in {"": judged, **enough}.items()}


def _calibration(parts: Mapping[str, _Part]) -> CalibrationSet:
    fitted = {name: part.calibration for name, part in parts.items()}
    return CalibrationSet(fitted.pop(""), fitted)


def _fit(judged: Sequence[JudgedPair]) -> _Part:
    """Every principle is a sample of its own; an ensemble's mean is then made as sure as it is right."""
    samples = _samples(judged)
    losses = _left_out_losses(samples)
    lapse = _best_lapse(losses)
    penalty = _penalty(samples, lapse)
    fitted = _fitted(samples, lapse, penalty)
    if all(len(one.judgement.principles) == 1 for one in judged):
        return _Part(samples, fitted, losses, penalty, 1.0)
    factor = fit_sharpness(
        lambda factor: [probability(one.judgement, CalibrationSet(fitted.sharpened(factor))) for one in judged],
        platt_targets([one.pair.label for one in judged], len(set(samples.prompts))),
    )
    return _Part(samples, fitted.sharpened(factor), losses, penalty, factor)


def _samples(judged: Sequence[JudgedPair]) -> _Samples:
    found = [(tuple(one.evidence), item.pair) for item in judged for one in item.judgement.principles if one.evidence]
    if not found:
        raise ValueError("the judge found nothing about any pair to fit on: are the answers of each pair the same?")
    method = method_by(judged[0].judgement)
    numbers = [mix_features(evidence) if method.evidence is Evidence.MIX else evidence for evidence, _ in found]
    labels = np.array([pair.label for _, pair in found])
    return _Samples(method, np.array(numbers), labels, tuple(pair.group for _, pair in found))


def _left_out_losses(samples: _Samples) -> Array:
    """What each lapse costs the samples whose prompts are left out, a fifth of the prompts at a time."""
    losses = np.zeros((len(LAPSES), len(samples.labels)))
    for out in left_out(samples.prompts):
        rest = samples.taken(~out)
        # Not once more for each lapse: it hardly moves, and takes most of the time.
        penalty = _penalty(rest, lapse=0.0)
        for place, lapse in enumerate(LAPSES):
            calibration = _fitted(rest, lapse, penalty)
            p = np.array([_probability(samples.method, calibration, numbers) for numbers in samples.evidence[out]])
            # Beyond this the logarithm of a rounded 0 or 1 would decide everything.
            p = np.clip(p, 1e-12, 1.0 - 1e-12)
            label = samples.labels[out]
            losses[place, out] = -label * np.log(p) - (1.0 - label) * np.log1p(-p)
    return losses


def _best_lapse(losses: Array) -> float:
    """The lapse that costs least; of equals the smallest."""
    return LAPSES[int(losses.sum(axis=1).argmin())]


def _probability(method: Method, calibration: Calibration, numbers: Array) -> float:
    """P(A is better) of one sample, without the bounds within which a method serves it: no fit sees beyond them."""
    evidence = tuple(numbers.tolist())
    if method.evidence is Evidence.MIX:
        # Both orders were averaged already.
        evidence = (evidence[0], *evidence)
    return mean_probability(calibration.probabilities(method.evidence, evidence))


def _penalty(samples: _Samples, lapse: float) -> float:
    if samples.method.evidence is not Evidence.MIX:
        return 0.0
    return choose_penalty(samples.evidence, _targets(samples), samples.prompts, lapse)


def _fitted(samples: _Samples, lapse: float, penalty: float) -> Calibration:
    targets = _targets(samples)
    if samples.method.evidence is Evidence.MIX:
        return replace(MixCalibration(*fit_weights(samples.evidence, targets, penalty, lapse)), lapse=lapse)
    first, second = samples.evidence.T
    if samples.method.evidence is Evidence.ORDERS:
        temperature, position_bias = fit_temperature_and_position_bias(first, second, targets, lapse)
        return MethodCalibration(temperature=temperature, position_bias=position_bias, lapse=lapse)
    temperature, oppose_weight = fit_contrast(first, second, targets, lapse)
    return MethodCalibration(temperature=temperature, oppose_weight=oppose_weight, lapse=lapse)


def _targets(samples: _Samples) -> Array:
    return platt_targets(samples.labels, len(set(samples.prompts)))


def _intervals(part: _Part, resamples: int) -> dict[str, tuple[float, float]]:
    """Of each parameter that the fit of this method moves."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(part.samples.prompts):
        rows[prompt].append(row)
    prompts, draw = list(rows), np.random.default_rng(0)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(resamples):
        # A prompt that is drawn twice counts as two.
        drawn = [
            (str(place), row)
            for place, index in enumerate(draw.integers(0, len(prompts), len(prompts)))
            for row in rows[prompts[index]]
        ]
        resample = replace(
            part.samples.taken(np.array([row for _, row in drawn])), prompts=tuple(place for place, _ in drawn)
        )
        lapse = _best_lapse(part.losses[:, [row for _, row in drawn]])
        fitted = _fitted(resample, lapse, part.penalty).sharpened(part.sharpness)
        for name in _PARAMETERS[part.samples.method.evidence]:
            found[name].append(getattr(fitted, name))
    limits = {name: np.quantile(values, [0.025, 0.975]).tolist() for name, values in found.items()}
    return {name: (low, high) for name, (low, high) in limits.items()}

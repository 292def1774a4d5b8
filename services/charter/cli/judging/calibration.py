"""Measures a judge on labelled pairs and fits its calibration; what `charter judge calibrate` computes."""

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from charter.evaluation.judge.calibration import (
    LAPSES,
    calibration_error_by_chance,
    calibration_of,
    correctness,
    fit_contrast,
    fit_sharpness,
    fit_temperature_and_position_bias,
    fit_weights,
    left_out,
    length_slope,
    position_bias_rate,
    shorter_is_better_accuracy,
)
from charter.evaluation.judge.labelled_pairs import LabelledPair, split_by_group
from charter.judge.calibration import Calibration, CalibrationSet, MethodCalibration, MixCalibration, mix_features
from charter.judge.methods.mix import PARTS
from charter.v1 import judge_pb2, types_pb2

# Answers count as of similar length when the shorter has at least this share of the longer one's characters.
SIMILAR_LENGTH = 0.8
# A dimension is fitted by itself when its pairs come from this many prompts, of those that are fitted on.
_LEAST_PROMPTS = 15
# Fewer pairs give no correlation worth printing.
_LEAST_FOR_CORRELATION = 10


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A labelled pair and what the judge made of it."""

    pair: LabelledPair
    judgement: judge_pb2.Judgement

    @property
    def usable(self) -> bool:
        """Whether the judge gave a probability."""
        return self.judgement.HasField("probability_a")


def method_name(judgement: judge_pb2.Judgement) -> str:
    """choice, verdict, contrast or mix."""
    return judge_pb2.JudgingMethod.Name(judgement.method).removeprefix("JUDGING_METHOD_").lower()


def outcome_name(outcome: types_pb2.Outcome.ValueType) -> str:
    """The outcome in lower case."""
    return types_pb2.Outcome.Name(outcome).removeprefix("OUTCOME_").lower()


def halves(judged: Sequence[JudgedPair]) -> tuple[list[JudgedPair], list[JudgedPair]]:
    """The pairs to fit on and those to report on, with no prompt in both. Raises ``ValueError`` when one is empty."""
    fit, _ = split_by_group([one.pair for one in judged])
    groups = {pair.group for pair in fit}
    parts = (
        [one for one in judged if one.pair.group in groups],
        [one for one in judged if one.pair.group not in groups],
    )
    if not all(any(one.usable for one in part) for part in parts):
        prompts = len({one.pair.group for one in judged if one.usable})
        raise ValueError(f"judged pairs come from {prompts} prompts, too few to fit on some and report on others")
    return parts


def fit(judged: Sequence[JudgedPair]) -> CalibrationSet:
    """The calibration that makes the labels of these usable pairs most likely, of all and of each dimension.

    Principles of different dimensions need different temperatures. A dimension with few prompts gets none of its own.
    """
    by_dimension: dict[str, list[JudgedPair]] = defaultdict(list)
    for one in judged:
        asked = {principle.dimension for principle in one.judgement.principles}
        if len(asked) == 1 and any(principle.evidence for principle in one.judgement.principles):
            by_dimension[asked.pop()].append(one)
    fitted = {
        name: _fit(part)
        for name, part in sorted(by_dimension.items())
        if name and len({one.pair.group for one in part}) >= _LEAST_PROMPTS
    }
    return CalibrationSet(_fit(judged), fitted)


def _fit(judged: Sequence[JudgedPair]) -> Calibration:
    """Every principle is a sample of its own; an ensemble's mean is then made as sure as it is right."""
    fitted = _fit_principles(judged)
    if all(len(one.judgement.principles) == 1 for one in judged):
        return fitted
    factor = fit_sharpness(
        lambda factor: [probability(one.judgement, CalibrationSet(fitted.sharpened(factor))) for one in judged],
        [one.pair.label for one in judged],
    )
    return fitted.sharpened(factor)


def _fit_principles(judged: Sequence[JudgedPair]) -> Calibration:
    """With the lapse that predicts best the prompts left out, a fifth of them at a time."""
    method = method_name(judged[0].judgement)
    samples = [(tuple(one.evidence), item.pair) for item in judged for one in item.judgement.principles if one.evidence]
    folds = left_out([pair.group for _, pair in samples])

    def left_out_loss(lapse: float) -> float:
        loss = 0.0
        for out in folds:
            calibration = _fitted(method, list(itertools.compress(samples, ~out)), lapse)
            for evidence, pair in itertools.compress(samples, out):
                p = fmean(calibration.probabilities(method, evidence))
                # Beyond this the logarithm of a rounded 0 or 1 would decide everything.
                p = min(max(p, 1e-12), 1.0 - 1e-12)
                loss -= pair.label * math.log(p) + (1.0 - pair.label) * math.log1p(-p)
        return loss

    return _fitted(method, samples, min(LAPSES, key=left_out_loss) if folds else 0.0)


def _fitted(method: str, samples: Sequence[tuple[tuple[float, ...], LabelledPair]], lapse: float) -> Calibration:
    labels = [pair.label for _, pair in samples]
    if method == "mix":
        features = [mix_features(evidence) for evidence, _ in samples]
        weights = fit_weights(features, labels, [pair.group for _, pair in samples], lapse)
        return replace(MixCalibration(*weights), lapse=lapse)
    first, second = zip(*(evidence for evidence, _ in samples), strict=True)
    if method == "choice":
        temperature, position_bias = fit_temperature_and_position_bias(first, second, labels, lapse)
        return MethodCalibration(temperature=temperature, position_bias=position_bias, lapse=lapse)
    temperature, oppose_weight = fit_contrast(first, second, labels, lapse)
    return MethodCalibration(temperature=temperature, oppose_weight=oppose_weight, lapse=lapse)


def probability(judgement: judge_pb2.Judgement, calibration: CalibrationSet) -> float:
    """P(A is better) of a usable judgement as this calibration would have given it."""
    method = method_name(judgement)
    return fmean(
        fmean(calibration.of(one.dimension).probabilities(method, tuple(one.evidence))) if one.evidence else 0.5
        for one in judgement.principles
        if one.HasField("probability_a")
    )


def as_served(judgement: judge_pb2.Judgement) -> float:
    """P(A is better) as the judge gave it."""
    return judgement.probability_a


def mirrored(judgement: judge_pb2.Judgement) -> float:
    """Which answer the opposite question prefers, as 0, 0.5 or 1: a judge that reads it prefers the worse one."""
    lead = fmean(
        one.evidence[1] if one.evidence else 0.0 for one in judgement.principles if one.HasField("probability_a")
    )
    return 0.5 if lead == 0 else float(lead > 0)


def figures(judged: Sequence[JudgedPair], probability_of: Callable[[judge_pb2.Judgement], float]) -> dict[str, Any]:
    """Accuracy, calibration and length control on the usable pairs, as JSON."""
    usable = [one for one in judged if one.usable]
    if not usable:
        return {"pairs": 0}
    probabilities = [probability_of(one.judgement) for one in usable]
    labels = [one.pair.label for one in usable]
    right = correctness(probabilities, labels)
    similar = [index for index, one in enumerate(usable) if _similar_length(one.pair)]
    return asdict(calibration_of(probabilities, labels, [one.pair.group for one in usable])) | {
        "calibration_error_by_chance": calibration_error_by_chance(probabilities),
        "prompts": len({one.pair.group for one in usable}),
        "shorter_is_better_accuracy": _shorter(usable),
        "length_slope": length_slope(*_lengths(usable), probabilities),
        "similar_length_pairs": len(similar),
        "similar_length_accuracy": float(right[similar].mean()) if similar else None,
        "similar_length_shorter_accuracy": _shorter([usable[index] for index in similar]) if similar else None,
    }


def measurement(judged: Sequence[JudgedPair]) -> dict[str, Any]:
    """Everything that `calibrate` reports, as JSON; the fit is on one half of the prompts, the figures on the other.

    Raises ``ValueError`` when there are too few judged pairs.
    """
    fitted_on, reported_on = halves(judged)
    calibration = fit([one for one in fitted_on if one.usable])

    def calibrated(judgement: judge_pb2.Judgement) -> float:
        return probability(judgement, calibration)

    usable = [one for one in reported_on if one.usable]
    first = usable[0].judgement
    mirrors = first.method in (judge_pb2.JUDGING_METHOD_VERDICT, judge_pb2.JUDGING_METHOD_CONTRAST)
    return {
        "model": first.model,
        "method": method_name(first),
        "constitution_digest": first.constitution_digest,
        "calibration": asdict(calibration.overall),
        "calibration_by_dimension": {name: asdict(one) for name, one in calibration.by_dimension.items()},
        "fitted_on": figures(fitted_on, calibrated),
        "as_served": figures(reported_on, as_served),
        "calibrated": figures(reported_on, calibrated),
        "by_method": {
            name: figures(part, lambda judgement, fitted=fitted: probability(judgement, fitted))  # type: ignore[misc]
            for name, fitted, part in _methods_alone(fitted_on, reported_on)
        },
        "by_dimension": {
            name: figures(part, calibrated) for name, part in _parts(reported_on, lambda one: one.pair.dimension)
        },
        "by_source": {
            name: figures(part, calibrated) for name, part in _parts(reported_on, lambda one: one.pair.source)
        },
        "by_principle": {
            name: figures([_alone(one, name) for one in reported_on if name in _principles(one)], calibrated)
            for name in sorted({name for one in reported_on for name in _principles(one)})
        },
        "principle_correlations": _correlations(usable, calibration),
        "position_bias_rate": _position_bias(usable) if first.method == judge_pb2.JUDGING_METHOD_CHOICE else None,
        # The opposite question, asked by itself: below a half when the judge reads the question.
        "mirrored_accuracy": figures(reported_on, mirrored)["accuracy"] if mirrors else None,
        "failures": dict(Counter(outcome_name(one.judgement.outcome) for one in judged if not one.usable)),
        "prompt_tokens_per_label": fmean(one.judgement.usage.prompt_tokens for one in usable),
        "completion_tokens_per_label": fmean(one.judgement.usage.completion_tokens for one in usable),
    }


def _methods_alone(
    fitted_on: Sequence[JudgedPair], reported_on: Sequence[JudgedPair]
) -> Iterator[tuple[str, CalibrationSet, list[JudgedPair]]]:
    """For a mix, each method that was asked as if it had been asked alone: its own fit, and the pairs to report on."""
    if fitted_on[0].judgement.method != judge_pb2.JUDGING_METHOD_MIX:
        return
    for place, method in enumerate(PARTS):
        parts = [
            [_by_method(one, method, place) for one in judged if one.usable] for judged in (fitted_on, reported_on)
        ]
        if any(any(principle.evidence) for one in parts[0] for principle in one.judgement.principles):
            yield method, fit(parts[0]), parts[1]


def _by_method(judged: JudgedPair, method: str, place: int) -> JudgedPair:
    """The pair as if this method alone had been asked; it finds two numbers, in its place among those of the mix."""
    judgement = judge_pb2.Judgement()
    judgement.CopyFrom(judged.judgement)
    judgement.method = judge_pb2.JudgingMethod.Value(f"JUDGING_METHOD_{method.upper()}")
    for one in judgement.principles:
        del one.evidence[2 * place + 2 :], one.evidence[: 2 * place]
    return JudgedPair(judged.pair, judgement)


def _parts(judged: Sequence[JudgedPair], key: Callable[[JudgedPair], str]) -> Iterator[tuple[str, list[JudgedPair]]]:
    for name in sorted({key(one) for one in judged}):
        yield name or "-", [one for one in judged if key(one) == name]


def _principles(judged: JudgedPair) -> list[str]:
    return [one.principle_id for one in judged.judgement.principles]


def _alone(judged: JudgedPair, principle: str) -> JudgedPair:
    """The pair as if this principle alone had been asked."""
    (one,) = (one for one in judged.judgement.principles if one.principle_id == principle)
    judgement = judge_pb2.Judgement(method=judged.judgement.method, outcome=one.outcome, principles=[one])
    if one.HasField("probability_a"):
        judgement.probability_a = one.probability_a
    return JudgedPair(judged.pair, judgement)


def _correlations(judged: Sequence[JudgedPair], calibration: CalibrationSet) -> dict[str, float]:
    """Correlation of the probabilities of each two principles that were asked about the same pairs."""
    together: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for one in judged:
        asked = {
            name: probability(_alone(one, name).judgement, calibration)
            for name in _principles(one)
            if _alone(one, name).usable
        }
        for first, second in itertools.combinations(sorted(asked), 2):
            together[first, second].append((asked[first], asked[second]))
    return {
        f"{first} and {second}": statistics.correlation(*zip(*values, strict=True))
        for (first, second), values in together.items()
        if len(values) >= _LEAST_FOR_CORRELATION and all(len(set(column)) > 1 for column in zip(*values, strict=True))
    }


def _position_bias(judged: Sequence[JudgedPair]) -> float:
    """Before any calibration: the share of judgements in which the same position won in both orders."""
    evidence = [one.evidence for item in judged for one in item.judgement.principles if one.evidence]
    return position_bias_rate(
        [float(first > 0) for first, _ in evidence], [float(second > 0) for _, second in evidence]
    )


def _similar_length(pair: LabelledPair) -> bool:
    shorter, longer = sorted((len(pair.answer_a), len(pair.answer_b)))
    return shorter >= SIMILAR_LENGTH * longer


def _shorter(judged: Sequence[JudgedPair]) -> float:
    return shorter_is_better_accuracy(*_lengths(judged), [one.pair.label for one in judged])


def _lengths(judged: Sequence[JudgedPair]) -> tuple[list[int], list[int]]:
    return [len(one.pair.answer_a) for one in judged], [len(one.pair.answer_b) for one in judged]

"""Measures a judge on labelled pairs, as it is and calibrated: what `charter judge calibrate` shows."""

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from charter.data.pairs.labelled import LabelledPair
from charter.evaluation.judge.calibration import (
    calibration_error_by_chance,
    calibration_of,
    correctness,
    length_slope,
    position_bias_rate,
    shorter_is_better_accuracy,
)
from charter.evaluation.judge.fitting import RESAMPLES, fit, fit_with_intervals
from charter.evaluation.judge.judged import JudgedPair, as_served, fitted_prompts, halves, method_by, probability
from charter.judge.calibration import CalibrationSet, Evidence
from charter.judge.methods import mix
from charter.judge.methods.method import Method
from charter.outcomes import probability_of, win
from charter.storage.comparisons import enum_name
from charter.v1 import judge_pb2

# Answers count as of similar length when the shorter has at least this share of the longer one's characters.
SIMILAR_LENGTH = 0.8
# Fewer pairs give no correlation worth printing.
_LEAST_FOR_CORRELATION = 10


def mirrored(judgement: judge_pb2.Judgement) -> float:
    """Which answer the opposite question prefers, as 0, 0.5 or 1: a judge that reads it prefers the worse one."""
    lead = fmean(
        one.evidence[1] if one.evidence else 0.0 for one in judgement.principles if one.HasField("probability_a")
    )
    return float(win(probability_of(lead)))


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


def measurement(judged: Sequence[JudgedPair], resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything that `calibrate` reports, as JSON; the fit is on one half of the prompts, the figures on the other.

    Raises ``ValueError`` when there are too few judged pairs.
    """
    fitted_on, reported_on = halves(judged)
    found = fit_with_intervals([one for one in fitted_on if one.usable], resamples)
    calibration = found.calibration

    def calibrated(judgement: judge_pb2.Judgement) -> float:
        return probability(judgement, calibration)

    usable = [one for one in reported_on if one.usable]
    first = usable[0].judgement
    method = method_by(first)
    return {
        "model": first.model,
        "method": method.name,
        "constitution_digest": first.constitution_digest,
        "calibration": asdict(calibration.overall),
        "calibration_by_dimension": {name: asdict(one) for name, one in calibration.by_dimension.items()},
        "calibration_intervals": found.intervals,
        "calibration_intervals_by_dimension": found.intervals_by_dimension,
        "fitted_prompts": fitted_prompts(fitted_on),
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
        "position_bias_rate": _position_bias(usable) if method.evidence is Evidence.ORDERS else None,
        # The opposite question, asked by itself: below a half when the judge reads the question.
        "mirrored_accuracy": figures(reported_on, mirrored)["accuracy"] if method.evidence is Evidence.LEADS else None,
        "failures": dict(
            Counter(enum_name("outcome", one.judgement.outcome).lower() for one in judged if not one.usable)
        ),
        "prompt_tokens_per_label": fmean(one.judgement.usage.prompt_tokens for one in usable),
        "completion_tokens_per_label": fmean(one.judgement.usage.completion_tokens for one in usable),
    }


def _methods_alone(
    fitted_on: Sequence[JudgedPair], reported_on: Sequence[JudgedPair]
) -> Iterator[tuple[str, CalibrationSet, list[JudgedPair]]]:
    """For a mix, each method that was asked as if it had been asked alone: its own fit, and the pairs to report on."""
    if method_by(fitted_on[0].judgement) is not mix.METHOD:
        return
    for place, (name, method) in enumerate(mix.PARTS.items()):
        parts = [
            [_by_method(one, method, place) for one in judged if one.usable] for judged in (fitted_on, reported_on)
        ]
        if any(any(principle.evidence) for one in parts[0] for principle in one.judgement.principles):
            yield name, fit(parts[0]), parts[1]


def _by_method(judged: JudgedPair, method: Method, place: int) -> JudgedPair:
    """The pair as if this method alone had been asked; it finds two numbers, in its place among those of the mix."""
    judgement = judge_pb2.Judgement()
    judgement.CopyFrom(judged.judgement)
    judgement.method = method.number
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
    judgement = judge_pb2.Judgement(
        method=judged.judgement.method,
        chain_of_thought=judged.judgement.chain_of_thought,
        outcome=one.outcome,
        principles=[one],
    )
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
        [probability_of(first) for first, _ in evidence], [probability_of(second) for _, second in evidence]
    )


def _similar_length(pair: LabelledPair) -> bool:
    shorter, longer = sorted((len(pair.answer_a), len(pair.answer_b)))
    return shorter >= SIMILAR_LENGTH * longer


def _shorter(judged: Sequence[JudgedPair]) -> float:
    return shorter_is_better_accuracy(*_lengths(judged), [one.pair.label for one in judged])


def _lengths(judged: Sequence[JudgedPair]) -> tuple[list[int], list[int]]:
    return [len(one.pair.answer_a) for one in judged], [len(one.pair.answer_b) for one in judged]

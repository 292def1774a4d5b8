"""The page of a measurement: complete for every method, and safe whatever the texts are."""

import math
import random
from typing import Any

import pytest
from charter.chat import ChatMessage
from charter.data.pairs.labelled import LabelledPair
from charter.evaluation.judge.judged import JudgedPair
from charter.evaluation.judge.measurement import measurement
from charter.evaluation.report.judge_page import render_judge_page
from charter.v1 import judge_pb2, types_pb2

METHOD = judge_pb2.JUDGING_METHOD_CHOICE
EVIDENCE = {"choice": [2.0, -1.0], "verdict": [0.5, -0.5], "contrast": [0.1, -0.1], "mix": [2.0, -1.0, 0.5, -0.5, 0, 0]}


def judged(method: str, place: int) -> JudgedPair:
    sign = 1 if place % 3 else -1
    principles = [
        types_pb2.PrincipleJudgement(
            principle_id=name,
            outcome=types_pb2.OUTCOME_PREFERRED_A,
            probability_a=0.6 + 0.01 * (place % 7) * scale,
            evidence=[sign * scale * number * (1 + place % 5) for number in EVIDENCE[method]],
        )
        for name, scale in (("<b>kind</b>", 1), ("brief", -0.5))
    ]
    judgement = judge_pb2.Judgement(
        outcome=types_pb2.OUTCOME_PREFERRED_A,
        probability_a=0.6,
        principles=principles,
        method=judge_pb2.JudgingMethod.Value(f"JUDGING_METHOD_{method.upper()}"),
        model="models/<script>judge",
    )
    prompt = (ChatMessage("user", f"Hi {place // 2}"),)
    label = float(place % 3 > 0)
    return JudgedPair(LabelledPair(prompt, "a" * (1 + place % 4), "bb", label, f"group {place // 2}"), judgement)


def test_an_ensemble_is_as_sure_as_it_is_right() -> None:
    draw = random.Random(0)

    def pair(place: int) -> JudgedPair:
        quality = draw.gauss(0, 2)
        evidence = [quality + draw.gauss(0, 3) for _ in range(4)]
        principles = [
            types_pb2.PrincipleJudgement(principle_id=str(index), probability_a=0.5, evidence=[one, one])
            for index, one in enumerate(evidence)
        ]
        judgement = judge_pb2.Judgement(probability_a=0.5, principles=principles, method=METHOD, model="m")
        label = float(draw.random() < 1 / (1 + math.exp(-quality)))
        return JudgedPair(LabelledPair((ChatMessage("user", f"Hi {place}"),), "a", "b", label, str(place)), judgement)

    assert (
        measurement([pair(place) for place in range(3000)], resamples=2)["calibrated"]["expected_calibration_error"]
        < 0.04
    )


def leads(place: int, dimension: str, scale: float, draw: random.Random, lapse: float = 0.0) -> JudgedPair:
    """A pair whose label is drawn with probability sigmoid(lead); the evidence of contrast is lead * scale.

    A share ``lapse`` of the labels is then turned round.
    """
    lead = draw.gauss(0, 2)
    one = types_pb2.PrincipleJudgement(
        principle_id=dimension, dimension=dimension, probability_a=0.5, evidence=[lead * scale, 0.0]
    )
    judgement = judge_pb2.Judgement(
        probability_a=0.5, principles=[one], method=judge_pb2.JUDGING_METHOD_CONTRAST, model="m"
    )
    label = float((draw.random() < 1 / (1 + math.exp(-lead))) != (draw.random() < lapse))
    prompt = (ChatMessage("user", f"{dimension} {place}"),)
    return JudgedPair(LabelledPair(prompt, "a", "b", label, f"{dimension} {place}", dimension), judgement)


def test_labels_that_are_wrong_whatever_the_evidence_are_allowed_for_where_they_are() -> None:
    draw = random.Random(2)
    pairs = [leads(place, "helpful", 1.0, draw) for place in range(1500)]
    pairs += [leads(place, "harmless", 1.0, draw, lapse=0.2) for place in range(1500)]
    measured = measurement(pairs, resamples=2)
    fitted = measured["calibration_by_dimension"]
    assert fitted["helpful"]["lapse"] <= 0.05
    assert fitted["harmless"]["lapse"] >= 0.1
    assert fitted["harmless"]["temperature"] == pytest.approx(1, rel=0.4)
    assert measured["calibrated"]["expected_calibration_error"] < 0.04


def test_dimensions_are_calibrated_by_themselves() -> None:
    """The same lead weighs a tenth in one dimension; no one temperature can be right for both."""
    draw = random.Random(1)
    scales = {"helpful": 1.0, "harmless": 0.1}
    pairs = [leads(place, name, scale, draw) for name, scale in scales.items() for place in range(2000)]
    # Too few prompts for a temperature of their own.
    pairs += [leads(place, "honest", 1.0, draw) for place in range(10)]
    measured = measurement(pairs, resamples=2)
    fitted = measured["calibration_by_dimension"]
    assert {name: values["temperature"] for name, values in fitted.items()} == pytest.approx(scales, rel=0.15)
    assert measured["calibration"]["temperature"] < 0.7
    for figures in (measured["calibrated"], *(measured["by_dimension"][name] for name in scales)):
        assert figures["expected_calibration_error"] < 0.05


def test_a_mix_is_measured_beside_each_of_its_methods() -> None:
    """Choice finds nothing but a position, contrast finds the label: the parts are told apart."""
    draw = random.Random(2)
    pairs = []
    for place in range(400):
        contrast = leads(place, "helpful", 1.0, draw)
        one = contrast.judgement.principles[0]
        found = [1.0, -1.0, 0.0, 0.0, *one.evidence]
        del one.evidence[:]
        one.evidence.extend(found)
        contrast.judgement.method = judge_pb2.JUDGING_METHOD_MIX
        pairs.append(contrast)
    measured = measurement(pairs, resamples=2)
    # Verdict was not asked.
    assert set(measured["by_method"]) == {"choice", "contrast"}
    assert measured["by_method"]["choice"]["accuracy"] == pytest.approx(0.5)
    assert measured["by_method"]["contrast"]["accuracy"] == pytest.approx(measured["calibrated"]["accuracy"], abs=0.02)


def found(method: str) -> dict[str, Any]:
    about = {"files": ["pairs.jsonl"], "options": {"principle": "", "ensemble_size": 2}}
    return about | measurement([judged(method, place) for place in range(80)], resamples=10)


@pytest.mark.parametrize("method", list(EVIDENCE))
def test_the_page_has_every_figure_and_no_markup_of_others(method: str) -> None:
    measured = found(method)
    page = render_judge_page(measured)
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert "<b>kind" not in page
    assert "&lt;b&gt;kind&lt;/b&gt;" in page
    assert "Principles against each other" in page
    for row in (measured["as_served"], measured["calibrated"]):
        assert f"{row['expected_calibration_error']:.3f}" in page
        assert f"{row['brier']:.3f}" in page
    assert ("The opposite question" in page) == (measured["mirrored_accuracy"] is not None)

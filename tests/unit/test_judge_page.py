"""The page of a measurement: complete for every method, and safe whatever the texts are."""

import math
import random
from typing import Any

import pytest
from charter.cli.judge_calibration import JudgedPair, measurement
from charter.evaluation.judge_page import render_judge_page
from charter.evaluation.labelled_pairs import LabelledPair
from charter.inference.engine import ChatMessage
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
    prompt = (ChatMessage("user", "Hi"),)
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
        return JudgedPair(LabelledPair((ChatMessage("user", "Hi"),), "a", "b", label, str(place)), judgement)

    assert measurement([pair(place) for place in range(3000)])["calibrated"]["expected_calibration_error"] < 0.04


def found(method: str) -> dict[str, Any]:
    about = {"files": ["pairs.jsonl"], "options": {"principle": "", "ensemble_size": 2}}
    return about | measurement([judged(method, place) for place in range(80)])


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

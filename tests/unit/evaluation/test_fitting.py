"""The calibration of a judge that was drawn with known numbers, and what a few prompts can say of it."""

import random
from collections.abc import Callable, Sequence

import pytest
from charter.chat import ChatMessage
from charter.data.pairs.labelled import LabelledPair
from charter.evaluation.judge.fitting import fit, fit_with_intervals
from charter.evaluation.judge.judged import JudgedPair, halves, probability
from charter.evaluation.judge.measurement import measurement
from charter.judge.calibration import MethodCalibration
from charter.judge.methods import METHODS, method_of
from charter.outcomes import probability_of
from charter.storage.comparisons import method_name
from charter.v1 import judge_pb2, types_pb2

CONTRAST = METHODS["contrast"]


def judged(
    evidence: Sequence[float], label: float, prompt: str, method: str = "contrast", group: str = ""
) -> JudgedPair:
    found = METHODS[method]
    judgement = judge_pb2.Judgement(
        method=found.number,
        chain_of_thought=found.reasons,
        probability_a=0.5,
        principles=[types_pb2.PrincipleJudgement(principle_id="kind", probability_a=0.5, evidence=evidence)],
    )
    pair = LabelledPair((ChatMessage("user", prompt),), "a", "b", label, group or prompt)
    return JudgedPair(pair, judgement)


def drawn(prompts: int, temperature: float = 0.5, seed: int = 0) -> list[JudgedPair]:
    """Four pairs of each prompt, whose labels are drawn by the temperature; the opposite says nothing."""
    draw = random.Random(seed)
    pairs = []
    for prompt in range(prompts):
        for _ in range(4):
            lead = draw.gauss(0, 1)
            label = float(draw.random() < probability_of(lead / temperature))
            pairs.append(judged([lead, draw.gauss(0, 1)], label, f"prompt {prompt}"))
    return pairs


EVIDENCE: dict[str, Callable[[float], list[float]]] = {
    "choice": lambda lead: [lead, lead],
    "choice+reasoning": lambda lead: [lead, lead],
    "contrast": lambda lead: [lead, 0.0],
    "mix": lambda lead: [lead, lead, 0.2 * lead, -0.1 * lead, lead, 0.0],
}


@pytest.mark.parametrize("method", list(EVIDENCE))
def test_a_few_separable_prompts_leave_doubt(method: str) -> None:
    """Every lead points the right way: the likeliest calibration without a prior is certain of everything."""
    leads = [(-1) ** place * (0.5 + place / 10) for place in range(16)]
    pairs = [judged(EVIDENCE[method](lead), float(lead > 0), f"{place}", method) for place, lead in enumerate(leads)]
    calibration = fit(pairs)
    sure = [probability(one.judgement, calibration) for one in pairs]
    assert all((p > 0.5) == (one.pair.label == 1) for p, one in zip(sure, pairs, strict=True))
    assert all(0.005 < p < 0.995 for p in sure)
    # Evidence as clear as nothing that was seen is believed more, and not for certain.
    assert probability(judged(EVIDENCE[method](4.0), 1, "new", method).judgement, calibration) < 1 - 1e-6


def test_the_intervals_hold_the_truth_and_narrow_with_prompts() -> None:
    few, many = (fit_with_intervals(drawn(prompts), 100).intervals["temperature"] for prompts in (30, 150))
    assert few[0] < 0.5 < few[1]
    assert many[0] < 0.5 < many[1]
    assert many[1] - many[0] < 0.7 * (few[1] - few[0])


def test_pairs_of_one_prompt_do_not_narrow_an_interval() -> None:
    once = drawn(30)
    copied = fit_with_intervals(once * 5, 100).intervals["temperature"]
    assert copied == pytest.approx(fit_with_intervals(once, 100).intervals["temperature"], rel=0.05)


def test_too_few_prompts_are_refused_with_what_is_needed() -> None:
    with pytest.raises(ValueError, match=r"from 12 prompts, too few .* needs 15 to fit on"):
        measurement(drawn(12))


def test_a_prompt_that_the_groups_of_a_file_part_is_on_one_side() -> None:
    pairs = drawn(60)
    # The same prompt, but for white space, under a group of its own for each pair.
    pairs += [judged([1.0, 0.0], 1.0, " the  same\n", group=f"own {place}") for place in range(20)]
    fitted, reported = halves(pairs)
    assert {one.pair.group for one in fitted}.isdisjoint(one.pair.group for one in reported)
    same = [any("same" in one.pair.prompt[0].content for one in half) for half in (fitted, reported)]
    assert same == [True, False]


def test_a_reasoned_choice_is_reported_as_it_is_served() -> None:
    """Held between 40 and 60 %, however sure the letters are and whatever the calibration says."""
    draw = random.Random(4)
    leads = [draw.choice([-8.0, 8.0]) for _ in range(80)]
    pairs = [judged([lead, lead], float(lead > 0), f"{i}", "choice+reasoning") for i, lead in enumerate(leads)]
    found = measurement(pairs)
    assert found["method"] == "choice+reasoning"
    assert found["calibrated"]["brier"] == pytest.approx(0.4**2)
    assert found["calibrated"]["expected_calibration_error"] == pytest.approx(0.4)
    assert "choice+reasoning" not in (method.name for method in METHODS.values() if not method.reasons)


def test_what_is_served_and_what_is_reported_are_the_same_lines() -> None:
    reasoned = METHODS["choice+reasoning"]
    calibration = MethodCalibration(temperature=0.5, position_bias=1.0)
    assert reasoned.probabilities(calibration, (9.0, 9.0)) == pytest.approx((0.6, 0.6))
    assert METHODS["choice"].probabilities(calibration, (9.0, 9.0))[0] > 0.99
    assert reasoned.probabilities(calibration, ()) == (0.5,)


def test_every_method_has_its_name_in_the_contract() -> None:
    for name, method in METHODS.items():
        judgement = judge_pb2.Judgement(method=method.number, chain_of_thought=method.reasons)
        assert (method_name(judgement), method_of(method.number, method.reasons)) == (name, method)
    assert {method.number for method in METHODS.values()} == set(judge_pb2.JudgingMethod.values()) - {0}

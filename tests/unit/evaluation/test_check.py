"""What a run's judge check measures on, and what it says."""

import random

import pytest
from charter.chat import ChatMessage
from charter.data.pairs.labelled import LabelledPair
from charter.evaluation.judge.check import judge_check_of, without_fitted
from charter.held_out import prompt_key
from charter.v1 import judge_pb2, types_pb2


def pair(prompt: str, label: float = 1.0) -> LabelledPair:
    return LabelledPair((ChatMessage("user", prompt),), "short", "longer", label, prompt)


def test_pairs_that_the_calibration_was_fitted_on_are_left_out_however_they_are_spaced() -> None:
    pairs = [pair("What is tea?"), pair(" What  is tea?\n"), pair("What is coffee?")]
    kept = without_fitted(pairs, [prompt_key((ChatMessage("user", "What is tea?"),))])
    assert kept == pairs[2:]
    assert without_fitted(pairs, []) == pairs
    with pytest.raises(ValueError, match="prompts of all 2 labelled pairs"):
        without_fitted(pairs[:2], [prompt_key(pairs[0].prompt)])


def test_a_temperature_of_noise_measures_a_coin_on_what_it_was_not_fitted_on() -> None:
    """Labels that nothing predicts: a judge that knows the fitted ones by heart is right on half of the others."""
    draw = random.Random(0)
    pairs = [pair(f"Prompt {place}", float(draw.random() < 0.5)) for place in range(400)]
    fitted = [prompt_key(one.prompt) for one in pairs[:200]]
    by_heart = {one.group: one.label for one in pairs[:200]}

    def judged(one: LabelledPair) -> judge_pb2.Judgement:
        return judge_pb2.Judgement(
            method=judge_pb2.JUDGING_METHOD_CHOICE, model="m", probability_a=by_heart.get(one.group, 0.9)
        )

    kept = without_fitted(pairs, fitted)
    check = judge_check_of(kept, [judged(one) for one in kept], source="pairs.jsonl", seed=0, left_out=200)
    assert (check.calibration.pairs, check.left_out, check.method) == (200, 200, "choice")
    assert check.calibration.accuracy == pytest.approx(0.5, abs=0.1)
    whole = judge_check_of(pairs, [judged(one) for one in pairs], source="pairs.jsonl", seed=0, left_out=0)
    assert whole.calibration.accuracy > 0.7


def test_failures_are_counted_and_nothing_but_failures_is_an_error() -> None:
    failed = judge_pb2.Judgement(outcome=types_pb2.OUTCOME_INVALID)
    found = judge_pb2.Judgement(probability_a=0.9, outcome=types_pb2.OUTCOME_PREFERRED_A)
    check = judge_check_of([pair("a"), pair("b")], [failed, found], source="x", seed=0, left_out=0)
    assert (check.failures, check.calibration.pairs) == ({"INVALID": 1}, 1)
    with pytest.raises(ValueError, match="could not label any of 1 labelled pairs"):
        judge_check_of([pair("a")], [failed], source="x", seed=0, left_out=0)

"""The sentence that a run is told by."""

from dataclasses import replace

import numpy as np
import pytest
from charter.evaluation.report.verdict import judge_warnings, verdict
from charter.runs.results import Calibration, Evaluation, JudgeCheck, PreferenceFit, ReliabilityBin

from tests.support.report_fixture import made_up_evaluation

EVALUATION = replace(
    made_up_evaluation(np.random.default_rng(0)), wins=30, ties=4, losses=14, failures={}, win_rate=32 / 48
)
GOOD_JUDGE = JudgeCheck(
    model="m",
    method="choice",
    source="pairs.jsonl",
    calibration=Calibration(200, 0.8, 0.74, 0.86, 0.15, 0.05, ()),
    position_bias_rate=0.1,
    shorter_is_better_accuracy=0.6,
    failures={},
)


def judge_with(**changes: float) -> JudgeCheck:
    shorter = changes.pop("shorter_is_better_accuracy", GOOD_JUDGE.shorter_is_better_accuracy)
    calibration = replace(GOOD_JUDGE.calibration, **changes)  # type: ignore[arg-type]
    return replace(GOOD_JUDGE, calibration=calibration, shorter_is_better_accuracy=shorter)


@pytest.mark.parametrize(
    ("low", "high", "direction", "words"),
    [
        (0.51, 0.8, "better", "The judge preferred the aligned policy on 66.7% of 48 held-out prompts"),
        (0.2, 0.49, "worse", "it got worse"),
        (0.45, 0.8, "open", "The interval includes 50%: no difference was shown."),
        (0.5, 0.8, "open", "The interval includes 50%"),
        (0.2, 0.5, "open", "The interval includes 50%"),
    ],
)
def test_the_interval_decides(low: float, high: float, direction: str, words: str) -> None:
    found = verdict(replace(EVALUATION, win_rate_low=low, win_rate_high=high), GOOD_JUDGE, None)
    assert found.direction == direction
    assert words in found.sentence
    assert f"(95% interval {100 * low:.1f}% to {100 * high:.1f}%)" in found.sentence
    assert found.caveats == ()


def test_no_evaluation_is_no_verdict() -> None:
    assert verdict(None, GOOD_JUDGE, None).direction == "none"
    assert "No verdict" in verdict(None, GOOD_JUDGE, None).sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy_low": 0.5}, "cannot be told from a coin"),
        ({"accuracy": 0.55, "accuracy_low": 0.41, "shorter_is_better_accuracy": 0.4}, "41.0% to 86.0%"),
        ({"shorter_is_better_accuracy": 0.81}, "below a trivial baseline"),
    ],
)
def test_a_weak_judge_is_called_weak(changes: dict[str, float], words: str) -> None:
    judge = judge_with(**changes)
    (warning,) = judge_warnings(judge)
    assert words in warning
    found = verdict(EVALUATION, judge, None)
    assert found.sentence.startswith("A weak judge preferred")
    assert found.caveats == (warning,)


def test_an_unmeasured_judge_is_said_to_be_unmeasured() -> None:
    found = verdict(EVALUATION, None, None)
    assert found.sentence.startswith("A judge that was not measured preferred")
    assert "not measured" in found.caveats[0]


def test_few_prompts_and_many_failures_are_caveats() -> None:
    few = verdict(replace(EVALUATION, wins=10, ties=0, losses=2), GOOD_JUDGE, None)
    assert "Only 12 prompts" in few.caveats[0]
    failed = verdict(replace(EVALUATION, failures={"INVALID": 4, "UNAVAILABLE": 1}), GOOD_JUDGE, None)
    assert failed.caveats == ("5 of 53 judgements failed and are in no figure.",)
    assert verdict(replace(EVALUATION, failures={"INVALID": 4}), GOOD_JUDGE, None).caveats == ()


def fit_with(accuracy_low: float) -> PreferenceFit:
    bins = (ReliabilityBin(0.5, 0.55, 30, 0.51, 0.6), ReliabilityBin(0.55, 0.6, 10, 0.57, 0.6))
    return PreferenceFit(
        train_pairs=80,
        held_out_pairs=40,
        left_out={},
        labels=(),
        history=(),
        held_out=Calibration(40, 0.6, accuracy_low, 0.75, 0.24, 0.08, bins),
        length_correlation=0.0,
    )


@pytest.mark.parametrize("evaluation", [EVALUATION, None])
def test_the_reward_is_said_to_be_a_model_so_right_and_so_sure(evaluation: Evaluation | None) -> None:
    found = verdict(evaluation, GOOD_JUDGE, fit_with(0.51))
    # (30 * 0.51 + 10 * 0.57) / 40
    assert "On 40 held-out pairs it agrees with 60.0% of them (51.0% to 75.0%), and is 52.5% sure" in found.reward
    assert found.caveats == ()
    (caveat,) = verdict(evaluation, GOOD_JUDGE, fit_with(0.5)).caveats
    assert "The reward cannot be told from a coin" in caveat
    assert verdict(evaluation, GOOD_JUDGE, None).reward == ""

"""The figures of a study whose truth is known: who is ahead, what is missing, and what is said with it."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from charter.cli.study.tables import print_results
from charter.evaluation.compare.folder import Answer
from charter.evaluation.compare.votes import Vote, text_digest
from charter.study.folder import StudyFolder
from charter.study.report import write_all
from charter.study.results import StudyResults, compute
from charter.study.spec import START
from rich.console import Console

from tests.support.study_folder import AXES, MadeArm, note_run_files, read_spec, write_study

ARMS = {
    "rlhf": MadeArm(120, -80, "imported", longer=40),
    "rlaif": MadeArm(60, 150, "judge"),
    "weak": MadeArm(20, 30, by_dimension={"helpful": "imported", "harmless": "judge"}, after="rlhf"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    made = write_study(
        tmp_path_factory.mktemp("home") / "study",
        ARMS,
        prompts=60,
        samples=200,
        failed=[("rlaif", 3)],
        trained={"rlaif": "third"},
    )
    for seed in (1, 2, 3):
        note_run_files(made, "rlhf", seed, kl=float(seed), labels=100)
    return made


@pytest.fixture(scope="module")
def results(folder: StudyFolder) -> StudyResults:
    return compute(read_spec(folder), folder)


def test_arms_stand_where_they_are(results: StudyResults) -> None:
    (judged,) = results.judges
    front = judged.as_judged
    assert front is not None
    for arm, made in ARMS.items():
        end = front.end(arm)
        assert end is not None
        # A seed is off by 12 points, a prompt by 85: the mean of three on 60 by about 15.
        assert (end.across.value, end.up.value) == pytest.approx((made.across, made.up), abs=45)
        assert end.across.low < end.across.value < end.across.high
        assert end.ellipse is not None
    assert front.front == ("rlhf", "rlaif")
    assert front.dominates["rlaif"]["weak"] > 0.9
    assert front.dominates["rlaif"]["rlhf"] < 0.01
    assert front.dominates["weak"][START] > front.dominates[START]["weak"]


def test_a_rating_is_the_mean_of_its_seeds_and_says_how_often_it_is_preferred(results: StudyResults) -> None:
    front = results.judges[0].as_judged
    assert front is not None
    end = front.end("rlhf")
    assert end is not None
    assert end.seeds == (1, 2, 3)
    assert np.mean(end.policies, axis=0) == pytest.approx([end.across.value, end.up.value])
    for rating, rate in zip((end.across, end.up), end.preferred, strict=True):
        assert [rate.value, rate.low, rate.high] == pytest.approx(
            [1 / (1 + 10 ** (-points / 400)) for points in (rating.value, rating.low, rating.high)]
        )


def test_a_curve_has_its_steps_before_its_end(results: StudyResults) -> None:
    front = results.judges[0].as_judged
    assert front is not None
    assert [spot.step for spot in front.spots if spot.arm == "rlaif"] == [4, 8, None]
    across = [spot.across.value for spot in front.spots if spot.arm == "rlaif"]
    assert across == sorted(across)


def test_a_run_that_failed_is_left_out_and_named(results: StudyResults) -> None:
    front = results.judges[0].as_judged
    assert front is not None
    assert {spot.seeds for spot in front.spots if spot.arm == "rlaif"} == {(1, 2)}
    assert results.missing == ("rlaif with seed 3: failed: out of memory",)
    # Seeds beyond the first: of three, two and three.
    assert front.degrees == 5


def test_a_judge_that_trained_an_arm_is_named_with_its_figures(results: StudyResults) -> None:
    (remark,) = results.judges[0].remarks
    assert "third is the judge that trained rlaif" in remark


def test_an_arm_is_told_with_its_labels_tokens_kl_and_minutes(results: StudyResults) -> None:
    start, rlhf, rlaif, weak = results.arms
    assert (start.arm, start.labellers, start.minutes) == (START, {}, None)
    assert rlhf.tokens is not None
    assert start.tokens is not None
    assert rlhf.tokens - start.tokens == pytest.approx(40, abs=5)
    assert (rlhf.labels, rlhf.agreement, rlhf.kl, rlhf.labellers) == (100, 0.75, 2.0, {"": "imported"})
    assert rlhf.minutes == pytest.approx(12)
    # Runs whose folders are on another machine.
    assert (rlaif.kl, rlaif.seeds, rlaif.wanted) == (None, (1, 2), 3)
    assert (weak.labellers, weak.after) == ({"harmless": "judge", "helpful": "imported"}, "rlhf")


def test_equal_lengths_leave_ratings_that_do_not_come_of_length(results: StudyResults) -> None:
    """No label here follows the length."""
    judged = results.judges[0]
    assert judged.as_judged is not None
    assert judged.equally_long is not None
    for end in judged.as_judged.ends:
        controlled = judged.equally_long.end(end.arm)
        assert controlled is not None
        assert controlled.across.value == pytest.approx(end.across.value, abs=25)


def test_an_arm_whose_answers_are_always_longer_is_not_told_at_equal_lengths(tmp_path: Path) -> None:
    arms = {"long": MadeArm(50, 50, longer=400), "same": MadeArm(20, 10)}
    folder = write_study(tmp_path / "study", arms, prompts=30, samples=100)
    judged = compute(read_spec(folder), folder).judges[0]
    assert judged.equally_long is not None
    assert {spot.arm for spot in judged.equally_long.spots} == {"same"}
    assert "every answer of long-1 is longer" in " ".join(judged.equally_long.notes)
    assert judged.as_judged is not None
    assert {spot.arm for spot in judged.as_judged.ends} == {"long", "same"}


def test_one_seed_is_said_to_tell_nothing_of_others(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", {"only": MadeArm(50, 50)}, seeds=[7], prompts=30, samples=100)
    front = compute(read_spec(folder), folder).judges[0].as_judged
    assert front is not None
    assert front.degrees == 0
    assert front.end("only") is not None


def test_people_are_one_more_judge(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", {"a": MadeArm(0, 0)}, seeds=[1], prompts=20, samples=100)
    answers = folder.evaluation.read_answers()
    for axis in AXES:
        for place in range(10):
            key = f"{axis}-{place}"
            ours, theirs = answers["a-1", key, 0], answers[START, key, 0]
            folder.evaluation.add_vote(_vote(ours, theirs))
    judged = {one.judge: one for one in compute(read_spec(folder), folder).judges}
    front = judged["people"].as_judged
    assert front is not None
    end = front.end("a")
    assert end is not None
    assert end.preferred[0].value == pytest.approx(10.5 / 11)


def test_a_study_that_is_not_measured_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", {"a": MadeArm(0, 0)}, seeds=[1, 2], prompts=2, samples=100)
    folder.evaluation.spec.unlink()
    results = compute(read_spec(folder), folder)
    assert results.judges == ()
    assert "no policy is measured yet" in results.missing


def test_a_policy_that_is_not_judged_yet_is_left_out_until_it_is(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", {"a": MadeArm(90, 90)}, prompts=20, samples=100)
    lines = folder.evaluation.judgements.read_text().splitlines()
    kept = [line for line in lines if '"a-3' not in line]
    folder.evaluation.judgements.write_text("".join(line + "\n" for line in kept))
    results = compute(read_spec(folder), folder)
    front = results.judges[0].as_judged
    assert front is not None
    assert {spot.seeds for spot in front.spots} == {(1, 2)}
    assert results.missing == ("120 judgements of third",)


def test_the_terminal_has_the_ends_with_what_must_be_said(results: StudyResults) -> None:
    out = StringIO()
    print_results(results, Console(file=out, width=200))
    text = out.getvalue()
    assert "Missing: rlaif with seed 3: failed: out of memory" in text
    assert "third is the judge that trained rlaif" in text
    (line,) = [line for line in text.splitlines() if line.startswith("rlhf ")]
    front = results.judges[0].as_judged
    assert front is not None
    end = front.end("rlhf")
    assert end is not None
    assert f"{end.across.value:+.0f} ({end.across.low:+.0f} to {end.across.high:+.0f})" in line
    assert f"{end.preferred[0].value:.1%}" in line


def test_all_is_written(folder: StudyFolder) -> None:
    results = write_all(read_spec(folder), folder)
    assert json.loads(folder.result.read_text()) == json.loads(json.dumps(results.as_json()))
    assert folder.figure_png.read_bytes().startswith(b"\x89PNG")
    assert "prefers-color-scheme:dark" in folder.figure_svg.read_text()
    assert folder.report.read_text().startswith("<!DOCTYPE html>")


def _vote(better: Answer, worse: Answer) -> Vote:
    return Vote(
        f"id-{better.prompt}",
        "anna",
        "2026-11-30T12:00:00+00:00",
        better.prompt,
        better.dimension,
        better.model,
        worse.model,
        text_digest(better.text),
        text_digest(worse.text),
        "left",
    )

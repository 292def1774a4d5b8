"""A study goes on only as what it was begun as, and takes as long as what was measured."""

import json
from pathlib import Path

import pytest
from charter.spec.load import spec_to_json
from charter.study.changes import changes
from charter.study.estimate import seconds_a_prompt, seconds_by_arm
from charter.study.folder import StudyFolder, StudyRun
from charter.study.load import load_study
from charter.study.spec import CheckedStudy

from tests.support.study_file import study_file

PAIRS = "pairs: {sources: [human.jsonl], count: 9}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return study_file(tmp_path)


def begun(file: Path, *runs: tuple[str, str]) -> StudyFolder:
    """The folder of a study, with a run of each of these arms in a state."""
    study = load_study(file, file.parent / "home")
    folder = StudyFolder(study.folder)
    folder.path.mkdir(parents=True)
    folder.begin(study)
    for arm, state in runs:
        folder.note_run(StudyRun(arm, 1, "request", state=state))
    return folder


def edited(file: Path, old: str, new: str) -> CheckedStudy:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return load_study(file, file.parent / "home")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seeds: [1, 2]", "seeds: [1, 2, 3]"),
        ("seeds: [1, 2]", "seeds: [1]"),
        ("  - {name: rlaif, labels: judge}\n", "  - {name: rlaif, labels: judge}\n  - {name: more, labels: judge}\n"),
        ("{name: sft-rlaif, after: sft, labels: judge}", "{name: other, labels: judge}"),
        ("method: choice", "method: contrast"),
        ("evaluation:", "hours: 3\nevaluation:"),
    ],
)
def test_more_or_fewer_of_what_has_not_begun_is_no_change(file: Path, old: str, new: str) -> None:
    folder = begun(file, ("rlhf", "SUCCEEDED"), ("rlaif", "FAILED"))
    assert changes(folder, edited(file, old, new)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{name: rlhf, labels: imported}", "{name: rlhf, labels: judge}", "arm rlhf, of which runs have begun"),
        ("{name: rlaif, labels: judge}", "{name: rlaif, after: sft, labels: judge}", "arm rlaif, of which runs"),
        ("- {name: rlaif, labels: judge}", "- {name: rlaif, labels: judge, run: {ppo: {steps: 5}}}", "arm rlaif, of"),
        ("seeds:", "seed: 4\nseeds:", "pairs or seed changed"),
        ("pairs: {sources: [human.jsonl]}", "pairs: {sources: [human.jsonl], dimension: x}", "pairs or seed changed"),
        ("labels: imported}", "labels: judge}", "labels of imported came or went"),
        ("  judges: [{name: third", "  every_steps: 2\n  judges: [{name: third", "evaluation.every_steps changed"),
    ],
)
def test_what_runs_have_learned_from_stays(file: Path, old: str, new: str, said: str) -> None:
    folder = begun(file, ("rlhf", "SUCCEEDED"), ("rlaif", "FAILED"))
    assert said in "; ".join(changes(folder, edited(file, old, new)))


def test_the_run_spec_is_a_part_of_every_arm(file: Path) -> None:
    folder = begun(file, ("rlaif", "RUNNING"))
    run = file.parent / "below" / "run.yaml"
    run.write_text(run.read_text().replace("steps: 4", "steps: 6"))
    assert changes(folder, load_study(file, file.parent / "home")) == [
        "arm rlaif, of which runs have begun, is told something else"
    ]


def test_a_judge_that_has_labelled_stays(file: Path) -> None:
    folder = begun(file)
    study = edited(file, "method: contrast", "method: verdict")
    assert changes(folder, study) == []
    folder.labels.write_text("")
    assert changes(folder, study) == ["judge, who has labelled, changed"]


def test_the_number_of_pairs_may_change_until_the_arms_may_learn_from_them(file: Path) -> None:
    folder = begun(file)
    folder.pairs.write_text("")
    study = edited(file, "pairs: {sources: [human.jsonl]}", PAIRS)
    assert changes(folder, study) == []
    folder.labelled.write_text("{}")
    assert changes(folder, study) == ["pairs or seed changed, and pairs were taken"]


def test_an_arm_takes_what_its_runs_took_and_else_what_the_same_work_took(file: Path, tmp_path: Path) -> None:
    study = load_study(file, tmp_path / "home")
    runs_folder = tmp_path / "home" / "runs"
    for name, seconds, steps in (("one", 100.0, 4), ("two", 200.0, 4), ("longer", 900.0, 5)):
        spec = type(study.base)()
        spec.CopyFrom(study.arms["rlaif"])
        spec.name, spec.seed, spec.ppo.steps = name, 9, steps
        spec.services.judge = "elsewhere:1"
        (runs_folder / name).mkdir(parents=True)
        (runs_folder / name / "spec.json").write_text(spec_to_json(spec))
        record = {"finished": "now", "phase_seconds": {"ppo": seconds - 10, "evaluating": 10.0}}
        (runs_folder / name / "run.json").write_text(json.dumps(record))
    (runs_folder / "damaged").mkdir()
    (runs_folder / "damaged" / "run.json").write_text("{")
    # Whose labels they are, and with which seed, makes no run longer.
    assert seconds_by_arm(study.arms, {}, runs_folder) == {"rlhf": 150.0, "rlaif": 150.0, "sft-rlaif": 150.0}
    own = {("rlhf", 1): StudyRun("rlhf", 1, "request", state="SUCCEEDED", seconds=60.0)}
    assert seconds_by_arm(study.arms, own, runs_folder)["rlhf"] == 60.0
    assert seconds_a_prompt([runs_folder / "one"]) is None
    (runs_folder / "one" / "evaluation.json").write_text('{"rows": [1, 2, 3, 4]}')
    assert seconds_a_prompt([runs_folder / "one", runs_folder / "two"]) == 2.5

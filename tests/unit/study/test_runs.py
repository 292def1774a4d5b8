"""Which run of a study is next, and what it is told."""

from pathlib import Path

import pytest
from charter.study.folder import StudyFolder, StudyRun
from charter.study.points import all_points, missing_of, points_of, steps_of
from charter.study.runs import Key, all_runs, next_run, run_spec, slots_of, stores
from charter.study.spec import CheckedStudy
from charter.v1 import run_pb2

from tests.support.study_file import ARMS, RUN, checked_study

SERVICES = run_pb2.ServiceAddresses(policy=["up:1"], policy_control=["up:2"], judge="up:3", preference="up:4")
SLOTS = "slots: [{policy: ['a:1'], preference: 'a:2'}, {policy: ['b:1'], preference: 'b:2'}]\n"


def run(arm: str, seed: int, state: str, slot: int = 0) -> tuple[Key, StudyRun]:
    return (arm, seed), StudyRun(arm, seed, f"{arm}{seed}", slot, "id", "/runs/id", state)


@pytest.fixture
def study(tmp_path: Path) -> CheckedStudy:
    return checked_study(tmp_path, more="  every_steps: 2\n")


def test_whole_sets_of_arms_come_first_each_after_the_one_before_it(tmp_path: Path) -> None:
    arms = "".join(reversed(ARMS.splitlines(keepends=True)))
    found = all_runs(checked_study(tmp_path, arms).spec)
    assert found[:4] == [("sft", 1), ("sft-rlaif", 1), ("rlaif", 1), ("rlhf", 1)]
    assert [seed for _, seed in found] == [1] * 4 + [2] * 4


def test_the_next_run_waits_for_the_one_that_it_starts_from(study: CheckedStudy) -> None:
    runs = dict([run("rlhf", 1, "SUCCEEDED"), run("rlaif", 1, "FAILED")])
    # One that failed is resumed, one that this command has tried is not tried again.
    assert next_run(study.spec, runs, (), 0) == ("rlaif", 1)
    assert next_run(study.spec, runs, {("rlaif", 1)}, 0) == ("sft", 1)
    assert next_run(study.spec, runs, {("rlaif", 1), ("sft", 1)}, 0) == ("rlhf", 2)
    runs |= dict([run("sft", 1, "SUCCEEDED")])
    assert next_run(study.spec, runs, {("rlaif", 1)}, 0) == ("sft-rlaif", 1)


def test_a_run_goes_on_in_the_slot_that_it_has_begun_in(study: CheckedStudy) -> None:
    runs = dict([run("rlhf", 1, "CANCELLED", slot=1)])
    assert next_run(study.spec, runs, (), 0) == ("rlaif", 1)
    assert next_run(study.spec, runs, (), 1) == ("rlhf", 1)
    assert list(slots_of(study.spec, runs)) == [0, 1]


def test_a_run_is_told_its_seed_its_start_and_its_services(study: CheckedStudy) -> None:
    spec = run_spec(study, "sft-rlaif", 2, "/runs/id/policy", 0, SERVICES)
    assert (spec.name, spec.seed, spec.policy.model) == ("small-sft-rlaif-2", 2, "/runs/id/policy")
    assert spec.preference_model.model == "org/start"
    assert spec.checkpoints.curve_every_steps == 2
    assert spec.services == SERVICES
    one, other = (run_spec(study, "rlhf", seed, "", 0, SERVICES) for seed in (1, 2))
    for each in (one, other):
        each.ClearField("name")
        each.ClearField("seed")
    assert one == other


def test_slots_have_services_of_their_own_but_what_an_arm_says_itself(tmp_path: Path) -> None:
    arms = f"{ARMS}  - {{name: own, labels: judge, run: {{services: {{judge: 'own:9'}}}}}}\n"
    study = checked_study(
        tmp_path, arms, SLOTS.replace("'a:2'}", "'a:2', judge: 'a:3'}"), f"{RUN}services: {{judge: 'base:3'}}\n"
    )
    told = {
        (arm, slot): run_spec(study, arm, 1, "", slot, SERVICES).services for arm in ("own", "rlhf") for slot in (0, 1)
    }
    assert [told["rlhf", slot].policy for slot in (0, 1)] == [["a:1"], ["b:1"]]
    assert [told["rlhf", slot].judge for slot in (0, 1)] == ["a:3", "base:3"]
    assert {told["own", slot].judge for slot in (0, 1)} == {"own:9"}
    assert stores(study, SERVICES) == ["a:2", "b:2"]


def test_points_are_the_policies_of_runs_that_have_succeeded(study: CheckedStudy) -> None:
    steps = steps_of(study.arms)
    assert steps == {"rlhf": 4, "rlaif": 4, "sft": 0, "sft-rlaif": 4}
    runs = dict([run("rlhf", 1, "SUCCEEDED"), run("sft", 2, "SUCCEEDED"), run("rlaif", 1, "FAILED")])
    found = [(point.arm, point.seed, point.step, point.model) for point in points_of(study.spec, runs, steps)]
    assert found == [("rlhf", 1, 2, "rlhf-1-step-2"), ("rlhf", 1, None, "rlhf-1"), ("sft", 2, None, "sft-2")]
    assert len(all_points(study.spec, steps)) == 2 * (3 * 2 + 1)
    missing = missing_of(study.spec, runs)
    assert ("rlaif", 1, "failed") in missing
    assert ("sft", 1, "not begun") in missing
    assert len(missing) == 6


def test_runs_and_times_are_kept(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    assert folder.read_runs() == {}
    for state in ("RUNNING", "SUCCEEDED"):
        folder.note_run(run("rlhf", 1, state)[1])
    folder.note_run(run("rlaif", 1, "FAILED")[1])
    assert {key: one.state for key, one in folder.read_runs().items()} == {
        ("rlhf", 1): "SUCCEEDED",
        ("rlaif", 1): "FAILED",
    }
    folder.clock.write_text("[[10.0, 30.0]]")
    folder.start_clock()
    folder.tick()
    assert 20 <= folder.seconds_worked() < 25

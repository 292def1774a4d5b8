"""Which corrections of a spec leave what a run has done valid."""

from pathlib import Path

import pytest
from charter.runs.corrections import conflicts
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from google.protobuf import json_format


def spec(**sections: object) -> run_pb2.RunSpec:
    values = {"name": "x", "policy": {"model": "m"}, "judge": {"model": "j"}, **sections}
    return fill_defaults(json_format.ParseDict(values, run_pb2.RunSpec()))


TUNED = {"supervised": {"data": [{"source": "chat.jsonl"}]}}
EVERYTHING = ("judge_check.json", "pairs.jsonl", "labels.jsonl", "preference_fit.json", "answers_before.jsonl")


@pytest.mark.parametrize(
    ("done", "change", "refused"),
    [
        (EVERYTHING, {"ppo": {"steps": 3, "minibatches": 4}}, ""),
        (EVERYTHING, {"reward": {"judge_weight": 1}, "checkpoints": {"keep": 1}}, ""),
        (EVERYTHING, {"judge": {"model": "j", "limits": {"token_budget": 9}}}, ""),
        ((), {"seed": 2, "policy": {"model": "n"}, "judge": {"model": "k"}}, ""),
        (("pairs.jsonl",), {"judge": {"model": "k"}}, ""),
        (
            ("pairs.jsonl",),
            {"comparisons": {"pairs": 9}},
            "are sampled already, by another comparisons.pairs",
        ),
        (("pairs.jsonl",), {"sampling": {"temperature": 2}}, "by another sampling.temperature"),
        (("pairs.jsonl",), {"feedback": {"ai": 1, "human": 1}}, "by another feedback.human"),
        (("labels.jsonl",), {"judge": {"model": "k"}}, "its pairs are judged already, by another judge.model"),
        (("labels.jsonl",), {"preference_model": {"epochs": 4}}, ""),
        (("preference_fit.json",), {"preference_model": {"epochs": 4}}, "by another preference_model.epochs"),
        (("preference_fit.json",), {"comparisons": {"stored": [{"run_id": "r"}]}}, "comparisons.stored"),
        (("answers_before.jsonl",), {"evaluation": {"prompts": 4}}, "by another evaluation.prompts"),
        (("judge_check.json",), {"judge": {"model": "k"}}, "its judge is measured already, by another judge.model"),
        (("pairs.jsonl",), TUNED, "its pairs are sampled already, by another supervised.batch_size, "),
        (("supervised.json",), TUNED, "it is fine-tuned already, by another supervised."),
        (("pretraining.json",), TUNED, ""),
        (("pretraining.json",), {"policy": {"model": "m", "chat_template": "chatml"}}, "has learned from text already"),
        ((), {"name": "y"}, "its name stays x"),
    ],
)
def test_only_what_depends_on_a_change_stands_against_it(
    tmp_path: Path, done: tuple[str, ...], change: dict[str, object], refused: str
) -> None:
    for name in done:
        (tmp_path / name).touch()
    found = conflicts(tmp_path, spec(), spec(**change))
    assert len(found) == bool(refused)
    assert refused in "".join(found)


def test_what_the_last_stage_compares_may_change_at_any_time(tmp_path: Path) -> None:
    checkpoint(tmp_path, "step-000004")
    judge = {"name": "strict", "address": "host:1"}
    for compare in ({}, {"judges": [judge]}):
        assert conflicts(tmp_path, spec(), spec(evaluation={"compare": compare})) == []
    (why,) = conflicts(tmp_path, spec(), spec(seed=2, evaluation={"compare": {}}))
    assert "has learned already" in why


def checkpoint(folder: Path, place: str) -> None:
    step = folder / "checkpoints" / place
    step.mkdir(parents=True)
    (step / "COMPLETE").touch()


def test_after_a_checkpoint_of_rl_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    assert conflicts(tmp_path, spec(), spec(seed=2)) == []
    (tmp_path / "checkpoints" / "step-000002" / "COMPLETE").touch()
    assert "has learned already" in conflicts(tmp_path, spec(), spec())[0]


def test_a_stage_that_learns_is_bound_by_what_it_learns_from(tmp_path: Path) -> None:
    checkpoint(tmp_path, "supervised/step-000002")
    assert conflicts(tmp_path, spec(), spec(ppo={"learning_rate": 1e-6})) == []
    (why,) = conflicts(tmp_path, spec(), spec(**TUNED))
    assert "it learns from conversations already, by another supervised." in why
    # How to go on.
    assert f"delete {tmp_path}/checkpoints/supervised)" in why
    checkpoint(tmp_path, "of-another-version/step-000001")
    assert "has learned already" in conflicts(tmp_path, spec(), spec())[0]


def test_before_the_first_step_and_after_the_last_one_checkpoints_bind_nothing(tmp_path: Path) -> None:
    checkpoint(tmp_path, "supervised/step-000000")
    assert conflicts(tmp_path, spec(), spec(**TUNED)) == []
    # Killed before it could take them away.
    checkpoint(tmp_path, "pretraining/step-000004")
    (tmp_path / "run.json").write_text('{"learned": ["pretraining"]}')
    (tmp_path / "pretraining.json").touch()
    assert conflicts(tmp_path, spec(), spec(**TUNED)) == []

"""Runs in which the judge goes on working: refreshed preference models, its opinion on the way, early stopping."""

import json
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from charter.inference.preference_model import PreferenceModel
from charter.v1 import run_pb2
from charter.worker import answer_log
from charter.worker.reinforcement.overoptimisation import best
from charter.worker.reinforcement.progress import newest_progress
from charter.worker.training import checkpoint
from safetensors.torch import load_file

from tests.integration.worker.test_resume import SHARD, STEPS, assert_equal_to
from tests.support.reward_service import reward_service
from tests.support.worker_services import Stage, exit_status, tiny_services

# Names of the answers to held-out prompts.
ASKED = ("watched", "before")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("online"), tiny_model) as stage:
        yield stage


def spec_of(stage: Stage) -> run_pb2.RunSpec:
    return stage.spec(
        ppo={"steps": STEPS},
        judge={"labelled_pairs": ""},
        comparisons={"refresh_every_steps": 2, "refresh_pairs": 5},
        evaluation={"prompts": 3, "every_steps": 1, "watched_prompts": 2},
        checkpoints={"keep": 1},
    )


@pytest.fixture(scope="module")
def unbroken(stage: Stage) -> str:
    assert stage.work("unbroken", spec_of(stage)) == 0
    return "unbroken"


def test_the_preference_model_is_fitted_again_to_pairs_of_the_new_policy(stage: Stage, unbroken: str) -> None:
    folder = stage.run_folder(unbroken)
    rows = pq.read_table(folder / "comparisons.parquet").to_pylist()
    versions = [row["answer_a_weight_version"] for row in rows]
    assert set(versions) == {1, 3}
    first, second = (
        json.loads((folder / name).read_text()) for name in ("preference_fit.json", "preference_fit-1.json")
    )
    splits = {
        version: {row["split"] for row in rows if row["answer_a_weight_version"] == version} for version in (1, 3)
    }
    assert splits == {1: {"TRAIN", "HELD_OUT"}, 3: {"TRAIN", "HELD_OUT"}}
    prompts = {split: {str(row["prompt"]) for row in rows if row["split"] == split} for split in splits[1]}
    assert not prompts["TRAIN"] & prompts["HELD_OUT"]
    assert second["held_out_pairs"] > first["held_out_pairs"]
    assert len(first["labels"]) == versions.count(1)
    assert len(second["labels"]) == len(rows)
    # A fit may keep the probe, which moves the head alone.
    heads = [PreferenceModel.load(folder / name).head.weight for name in ("preference_model", "preference_model-1")]
    assert not torch.equal(*heads)
    record = json.loads((folder / "run.json").read_text())
    assert record["served"]["preference"]["version"] == 2
    assert record["phase_seconds"]["PPO"] > 0


def test_the_judge_is_asked_on_the_way_and_its_best_step_is_kept(stage: Stage, unbroken: str) -> None:
    steps = stage.ppo_steps(unbroken)
    for numbers in steps.values():
        assert 0 < numbers["held_out_judge"] < 1
        assert numbers["held_out_kl"] > 0
    found = newest_progress(stage.run_folder(unbroken) / "checkpoints")
    assert found is not None
    measured = found[1].measured
    assert [one.preference_version for one in measured] == [1, 1, 2, 2]
    assert [numbers["preference_version"] for numbers in steps.values()] == [1, 1, 2, 2]
    # After the refresh the best answers were scored again, by the model that scored the new ones.
    assert measured[1].best_score == measured[0].score
    assert measured[2].best_score not in (None, best(measured[:2]).score)
    assert [(one.step, one.judge, one.score) for one in measured] == [
        (step, numbers["held_out_judge"], numbers["held_out_score"]) for step, numbers in steps.items()
    ]
    kept = [path.name for path in checkpoint.complete(stage.run_folder(unbroken) / "checkpoints")]
    assert kept == sorted({f"step-{best(measured).step:06d}", f"step-{STEPS:06d}"})
    watched, before = (answer_log.read(stage.run_folder(unbroken) / f"answers_{name}.jsonl") for name in ASKED)
    assert (len(watched), len(before)) == (2, 3)
    # Other prompts: five are held out, and no two answers to one are drawn alike.
    assert {one.text for (one,) in watched}.isdisjoint(one.text for (one,) in before)


def test_killed_while_it_refreshes_and_while_the_judge_compares(stage: Stage, unbroken: str) -> None:
    instants = {
        "pairs of the new policy sampled, not stored": ("charter.worker.stages.label:Labelling.label", 2),
        "preference model fitted, not served": ("charter.worker.stages.fit:serve_preference_model", 1),
        "step done, the judge compares": ("charter.worker.stages.ppo:measure", 1),
    }
    for place, times in instants.values():
        with stage.process("killed", spec_of(stage), "", (place, times)) as worker:
            assert exit_status(worker, 600) == -signal.SIGKILL, place
    assert stage.work("killed", spec_of(stage), attempt=4) == 0
    assert_equal_to(stage, unbroken, "killed")


def test_a_policy_that_exploits_its_reward_is_taken_back(stage: Stage) -> None:
    """The score rises with every question; what the judge thinks does not rise for ever."""
    ticks = count()
    with reward_service(lambda request: [(item.id, float(next(ticks))) for item in request.items]) as address:
        spec = stage.spec(
            ppo={"steps": 12},
            judge={"labelled_pairs": ""},
            reward={"preference_weight": 0.0, "service_weight": 1.0, "service": address},
            evaluation={"prompts": 3, "every_steps": 1, "watched_prompts": 2, "patience": 1},
        )
        assert stage.work("exploits", spec) == 0
    steps = stage.ppo_steps("exploits")
    judge = {step: numbers["held_out_judge"] for step, numbers in steps.items()}
    top = max(judge, key=lambda step: (judge[step], -step))
    assert len(steps) == top + 1 < 12
    folder = stage.run_folder("exploits")
    actor = load_file(folder / "checkpoints" / f"step-{top:06d}" / "actor" / SHARD)
    policy = load_file(folder / "policy" / "model.safetensors")
    assert all(torch.equal(tensor, policy[name.removeprefix("model.")]) for name, tensor in actor.items())
    texts = [event.text for event in stage.events("exploits")]
    assert any(f"back to step {top}" in text for text in texts)
    assert json.loads((folder / "run.json").read_text())["counts"]["steps_taken_back"] == 1
    assert stage.work("exploits", spec, attempt=2) == 0


def test_one_prompt_is_too_few_and_said_before_anything_is_judged(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(stage)
    (tmp_path / "one.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": " Hi "}\n')
    spec.prompts.train[:] = [str(tmp_path / "one.jsonl")]
    assert stage.work("one prompt", spec) == 2
    assert "prompts.train: holds one prompt" in caplog.text
    assert not stage.run_folder("one prompt").joinpath("pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        ({"evaluation": {"every_steps": 1, "watched_prompts": 9}}, "prompts.held_out holds 5 different ones"),
        ({"evaluation": {"patience": 1}}, "set that too"),
        ({"comparisons": {"refresh_every_steps": 1}, "ppo": {"algorithm": "ALGORITHM_ONLINE_DPO"}}, "has none"),
        (
            {"comparisons": {"refresh_every_steps": 1}, "feedback": {"ai": 0.0, "human": 1.0}},
            "feedback gives ai no share",
        ),
    ],
)
def test_what_does_not_go_together_is_told(
    stage: Stage, sections: dict[str, dict[str, float | str]], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert stage.work("wrong", stage.spec(**sections)) == 2
    assert error in caplog.messages[-1]

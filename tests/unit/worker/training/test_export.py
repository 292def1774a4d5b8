"""The policy of a checkpoint as a folder of its own: the same weights, adapters merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.evaluation.compare.checkpoints import checkpoint_problem, exported
from charter.runs.artifacts import checkpoints_of
from charter.v1 import evaluation_pb2
from charter.worker.errors import RunError
from charter.worker.training.batches import collate
from charter.worker.training.export import export_policy
from charter.worker.training.models import LanguageModel

from tests.support.learned_run import learned_run
from tests.support.learners import CPU, TEMPERATURE, make_episodes


@pytest.mark.parametrize(
    ("stage", "options"),
    [("", {}), ("", {"lora_rank": 2}), ("", {"shared_trunk": True}), ("dpo", {"lora_rank": 2})],
    ids=["whole", "adapters", "shared trunk", "a stage before RL"],
)
def test_it_says_what_the_learner_said(tiny_model: Path, tmp_path: Path, stage: str, options: dict[str, Any]) -> None:
    learner = learned_run(tmp_path / "run", tiny_model, stage, **options)
    assert list(checkpoints_of(tmp_path / "run")) == [1, 2]
    batch = collate(make_episodes(), range(7), CPU)
    for step in (1, 2):
        export_policy(tmp_path / "run", step, tmp_path / "out" / str(step))
    found = [LanguageModel.load(tmp_path / "out" / str(step), CPU).logprobs(batch, TEMPERATURE) for step in (1, 2)]
    torch.testing.assert_close(found[1], learner.actor.logprobs(batch, TEMPERATURE), rtol=0, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    tokenizer = json.loads((tmp_path / "out" / "1" / "tokenizer_config.json").read_text())
    assert tokenizer["eos_token"] == "<|im_end|>"


def test_a_damaged_checkpoint_is_no_model(tiny_model: Path, tmp_path: Path) -> None:
    learned_run(tmp_path / "run", tiny_model)
    (shard,) = checkpoints_of(tmp_path / "run")[2].glob("actor/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(RunError, match="step-000002 is damaged"):
        export_policy(tmp_path / "run", 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_which_steps_there_are_is_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = evaluation_pb2.EvaluatedModel(name="early", run=str(run), step=7)
    assert checkpoint_problem(tmp_path, model).endswith("has no checkpoint: leave step out to take its policy")
    (run / "checkpoints").mkdir(parents=True)
    (run / "spec.json").write_text('{"policy": {"model": "org/model"}}')
    for step in (18, 4, 99):
        (run / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    for step in (18, 4):
        (run / "checkpoints" / f"step-{step:06d}" / "COMPLETE").touch()
    assert checkpoint_problem(tmp_path, model).endswith("has no checkpoint of step 7; it has those of 4 and 18")
    model.step = 18
    assert checkpoint_problem(tmp_path, model) == ""
    # Of a run that was fetched from another machine.
    (run / "spec.json").write_text('{"policy": {"model": "/models/there"}}')
    assert "learned from, /models/there, is not on this machine" in checkpoint_problem(tmp_path, model)
    # One that was written before the run deleted its own.
    model.step = 7
    exported(tmp_path, model).mkdir(parents=True)
    assert checkpoint_problem(tmp_path, model) == ""

"""Checkpoints: put back exactly, never half, and never more than asked for."""

import json
import random
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from charter.worker.clients.policy import Answer
from charter.worker.errors import RunError
from charter.worker.reinforcement.formulas import Moments
from charter.worker.reinforcement.progress import Progress, newest_progress, save_progress, unconsumed_batches
from charter.worker.reinforcement.sampling.rollouts import Batch
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.training import checkpoint

from tests.support.learners import make_episodes, make_learner

# What the only rank writes of a part.
SHARD = "shard-00001-model-00001-of-00001.safetensors"


def progress(step: int) -> Progress:
    return Progress(
        step=step,
        prompt_cursor=16 * step,
        weight_version=step + 1,
        controls=Controls(0.05 + step / 7, Moments(3 * step, step / 9, step / 11)),
    )


@pytest.mark.parametrize(
    "options", [{}, {"lora_rank": 2}, {"algorithm": "ALGORITHM_REINFORCE_PLUS_PLUS"}, {"shared_trunk": True}]
)
def test_learning_goes_on_exactly_where_it_stopped(tiny_model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Two steps, a checkpoint, two more steps; and from the checkpoint, in new models, the same two steps."""
    unbroken = make_learner(tiny_model, **options)
    torch.manual_seed(1)
    for step in range(2):
        learn(unbroken, make_episodes(step), step, Controls(0.05))
    save_progress(unbroken, tmp_path, progress(2), {}, keep=1)
    draws = random.random(), np.random.rand(), torch.rand(1).item()
    checkpoint.restore(unbroken, tmp_path / "step-000002")
    history = [learn(unbroken, make_episodes(step), step, Controls(0.05)) for step in (2, 3)]

    resumed = make_learner(tiny_model, **options)
    found = newest_progress(tmp_path)
    assert found is not None
    path, where = found
    assert where == progress(2)
    checkpoint.restore(resumed, path)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == draws
    checkpoint.restore(resumed, path)
    assert [learn(resumed, make_episodes(step), step, Controls(0.05)) for step in (2, 3)] == history
    for one, other in ((resumed.actor, unbroken.actor), (resumed.critic, unbroken.critic)):
        if one is None or other is None:
            continue
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_tied_weights_are_stored_once_and_stay_tied(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learner = make_learner(tiny_model)
    learn(learner, make_episodes(), 0, Controls(0.05))
    path = save_progress(learner, tmp_path, progress(1), {}, keep=1)
    assert not any("lm_head" in name for name in load_file(path / "actor" / SHARD))
    other = make_learner(tiny_model)
    checkpoint.restore(other, path)
    assert other.actor.model.lm_head.weight is other.actor.model.model.embed_tokens.weight


def test_answers_of_coming_steps_come_back_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    logprobs = np.array([-1e-30, -0.1, -7.123456789], dtype=np.float32)
    answer = Answer("é\n", (3, 4), (5, 6, 7), logprobs, (4, 4, 5), False)
    learner = make_learner(tiny_model)
    path = save_progress(
        learner, tmp_path, progress(1), {1: Batch([[answer, answer]], 2.5, 9), 2: Batch([], 0.1, 2)}, 1
    )
    found = unconsumed_batches(path)
    assert {step: (batch.seconds, batch.seed) for step, batch in found.items()} == {1: (2.5, 9), 2: (0.1, 2)}
    ((one, other),) = found[1].groups
    for again in (one, other):
        assert again.logprobs.dtype == np.float32
        assert again.logprobs.tobytes() == logprobs.tobytes()
        assert replace(again, logprobs=logprobs) == answer


def test_only_the_newest_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_model)
    for step in (1, 2, 3, 10):
        save_progress(learner, tmp_path, progress(step), {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000010"]


def test_those_of_a_curve_are_kept_besides(tiny_model: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_model)
    for step in range(7):
        save_progress(learner, tmp_path, progress(step), {}, keep=1, curve_every=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004", "step-000006"]


def test_half_written_ones_are_ignored_and_cleaned(tiny_model: Path, tmp_path: Path) -> None:
    """What a worker leaves that dies before the rename, and what one leaves that dies before the mark."""
    learner = make_learner(tiny_model)
    good = save_progress(learner, tmp_path, progress(1), {}, keep=3)
    unmarked = save_progress(learner, tmp_path, progress(2), {}, keep=3)
    (unmarked / "COMPLETE").unlink()
    unnamed = tmp_path / ".step-000003.tmp"
    unnamed.mkdir()
    (unnamed / "actor.safetensors").write_bytes(b"half")
    found = newest_progress(tmp_path)
    assert found is not None
    assert found[0] == good
    checkpoint.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


@pytest.mark.parametrize("name", [f"actor/{SHARD}", f"critic_optimizer/{SHARD}", "state.json"])
def test_a_damaged_one_is_passed_over(tiny_model: Path, tmp_path: Path, name: str) -> None:
    learner = make_learner(tiny_model)
    learn(learner, make_episodes(), 0, Controls(0.05))
    good = save_progress(learner, tmp_path, progress(1), {}, keep=2)
    damaged = save_progress(learner, tmp_path, progress(2), {}, keep=2) / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    found = newest_progress(tmp_path)
    assert found is not None
    assert found[0] == good
    damaged.unlink()
    found = newest_progress(tmp_path)
    assert found is not None
    assert found[0] == good


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert newest_progress(tmp_path) is None


def test_no_room_is_an_error_that_keeps_the_last_one(tiny_model: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 10 kB for a while, which is how the system says that there is no room."""
    learner = make_learner(tiny_model)
    good = save_progress(learner, tmp_path, progress(1), {}, keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write checkpoint .*step-000002.*older checkpoints are kept"):
            save_progress(learner, tmp_path, progress(2), {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found = newest_progress(tmp_path)
    assert found is not None
    assert found[0] == good
    assert not list(tmp_path.glob(".*"))


def test_the_state_is_plain_json(tiny_model: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_model)
    path = save_progress(learner, tmp_path, progress(4), {}, keep=1)
    assert json.loads((path / "state.json").read_text())["progress"]["prompt_cursor"] == 64
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors", ".json", ""}
    # Two models that have not learned yet have no moments.
    assert len(files) == 6
    checkpoint.restore(learner, path)

"""Two ranks compute what one does: losses, whitening, gradient norms, weights; and a checkpoint fits any number."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.worker.reinforcement.formulas import Moments
from charter.worker.reinforcement.progress import Progress, newest_progress, save_progress
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import Learner
from charter.worker.training import checkpoint, ranks
from charter.worker.training.models import named_tensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.learners import make_episodes, make_learner
from tests.support.rank_processes import on_ranks

# Sums of float32 in another order; Adam's steps of 1e-3 make more of it in the weights.
NUMBERS_DIFFER = 2e-5
WEIGHTS_DIFFER = 2e-5
STEPS = 2
EPISODES = 8

CASES: dict[str, dict[str, Any]] = {
    "ppo": {"epochs": 2, "kl_target": 1.0, "normalise_scores": True},
    "ppo with lora": {"lora_rank": 2},
    "ppo with a shared trunk": {"shared_trunk": True},
    "ppo with checkpointing and entropy": {"gradient_checkpointing": True, "entropy_coefficient": 0.01},
    # One row and one pair for each rank, and some ranks without.
    "ppo in small minibatches": {"minibatches": 8},
    "grpo": {"algorithm": "ALGORITHM_GRPO", "samples_per_prompt": 2},
    "rloo": {"algorithm": "ALGORITHM_RLOO", "samples_per_prompt": 2},
    "reinforce++": {"algorithm": "ALGORITHM_REINFORCE_PLUS_PLUS"},
    "online dpo": {"algorithm": "ALGORITHM_ONLINE_DPO", "samples_per_prompt": 2, "minibatches": 3},
    "online dpo one by one": {"algorithm": "ALGORITHM_ONLINE_DPO", "samples_per_prompt": 2, "minibatches": 3},
}
# Of a model that reads longer sequences alone; some are.
LONGEST_PACKED = {"online dpo one by one": 9}


def the_learner(model: Path, case: str) -> Learner:
    values = {"learning_rate": 1e-3, "critic_learning_rate": 1e-3, "minibatches": 2} | CASES[case]
    learner = make_learner(model, **values)
    if case in LONGEST_PACKED:
        learner.actor.longest_packed = LONGEST_PACKED[case]
    return learner


def steps(learner: Learner, first: int) -> list[dict[str, float]]:
    """The numbers of each step."""
    history, controls = [], Controls(0.3)
    for step in range(first, first + STEPS):
        numbers, controls, _ = learn(learner, make_episodes(step, EPISODES), step, controls)
        history.append(numbers)
    return history


def progress(step: int) -> Progress:
    return Progress(step, 0, step + 1, Controls(0.3, Moments(3, 0.25, 1.5)))


def weights(learner: Learner) -> dict[str, Tensor]:
    """All that learns, whole, on rank 0."""
    found = {f"actor {name}": tensor for name, tensor in ranks.whole(named_tensors(learner.actor)).items()}
    if learner.critic is not None:
        found |= {f"critic {name}": tensor for name, tensor in ranks.whole(named_tensors(learner.critic)).items()}
    return found


def go(model: Path, folder: Path, resume_from: Path) -> None:
    """Every case: some steps, a checkpoint, and some steps from a checkpoint that is there already."""
    for case in CASES:
        learner = the_learner(model, case)
        torch.manual_seed(1)
        history = steps(learner, 0)
        save_progress(learner, folder / case, progress(STEPS), {}, keep=1)
        after = weights(learner)
        resumed: list[dict[str, float]] = []
        if resume_from != folder:
            learner = the_learner(model, case)
            checkpoint.restore(learner, checkpoint.folder_of(resume_from / case, STEPS))
            resumed = steps(learner, STEPS)
        if ranks.rank() == 0:
            save_file({name: one.contiguous().clone() for name, one in after.items()}, folder / f"{case}.safetensors")
            (folder / f"{case}.json").write_text(json.dumps({"history": history, "resumed": resumed}))


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one rank wrote, and what two wrote, which also went on from where the one was."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    go(tiny_model, one, one)
    on_ranks(2, go, tiny_model, two, one)
    return one, two


def numbers(folder: Path, case: str, of: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / f"{case}.json").read_text())[of]
    return found


def assert_same_numbers(got: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(got) == len(expected) == STEPS
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=NUMBERS_DIFFER, abs=NUMBERS_DIFFER), name


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_as_one(folders: tuple[Path, Path], case: str) -> None:
    one, two = folders
    expected = numbers(one, case, "history")
    assert "policy_gradient_norm" in expected[0]
    assert_same_numbers(numbers(two, case, "history"), expected)
    after, after_one = load_file(two / f"{case}.safetensors"), load_file(one / f"{case}.safetensors")
    assert after.keys() == after_one.keys()
    for name, tensor in after_one.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=WEIGHTS_DIFFER, msg=f"{name} differs")


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_two_ranks_goes_on_in_one_and_the_other_way_round(
    tiny_model: Path, folders: tuple[Path, Path], case: str
) -> None:
    """Both against the steps that one rank does after its own checkpoint."""
    one, two = folders
    histories = {}
    for name, folder in (("one", one), ("two", two)):
        learner = the_learner(tiny_model, case)
        found = newest_progress(folder / case)
        assert found is not None
        path, where = found
        assert where == progress(STEPS)
        checkpoint.restore(learner, path)
        saved = load_file(folder / f"{case}.safetensors")
        assert all(torch.equal(tensor, saved[key]) for key, tensor in weights(learner).items())
        histories[name] = steps(learner, STEPS)
    assert_same_numbers(histories["two"], histories["one"])
    assert_same_numbers(numbers(two, case, "resumed"), histories["one"])


def test_each_rank_writes_its_part(folders: tuple[Path, Path]) -> None:
    _, two = folders
    sizes = [file.stat().st_size for file in sorted((two / "ppo").glob("*/actor_optimizer/*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)


@given(
    groups=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9),
    size=st.integers(1, 5),
)
def test_work_is_shared_so_that_each_row_counts_once(groups: list[list[int]], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "size", lambda: size)
        parts = []
        for rank in range(size):
            patch.setattr(ranks, "rank", lambda rank=rank: rank)
            parts.append(list(ranks.share(groups)))
    # As many passes on each rank.
    assert len({len(part) for part in parts}) == 1
    counted = [row for part in parts for rows, counts in part if counts for row in rows]
    assert sorted(counted) == sorted(row for group in groups for row in group)
    stand_ins = sum(not counts for part in parts for _, counts in part)
    # Only where there is nothing left to split.
    assert stand_ins < size
    assert stand_ins == 0 or all(len(rows) == 1 for part in parts for rows, _ in part)
    assert size > 1 or [rows for rows, _ in parts[0]] == groups

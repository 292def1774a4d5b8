"""Each algorithm's formulas against loops written from its paper, and its update against one plain batch."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from charter.v1 import run_pb2
from charter.worker.reinforcement import update
from charter.worker.reinforcement.algorithms import ALGORITHMS
from charter.worker.reinforcement.algorithms.base import Rows
from charter.worker.reinforcement.algorithms.grpo import group_advantages
from charter.worker.reinforcement.algorithms.online_dpo import dpo_loss
from charter.worker.reinforcement.algorithms.reinforce_plus_plus import rewards_to_go
from charter.worker.reinforcement.algorithms.rloo import leave_one_out_advantages
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.training.batches import Episodes, token_mask
from torch import Tensor

from tests.support.learners import make_episodes, make_learner, ppo_spec

LENGTHS = [3, 1, 4, 2, 4, 3, 1, 2]


def random(seed: int, scale: float = 1.0) -> Tensor:
    """[8, 4], on padding too, so that a formula that reads it gives a wrong number."""
    return scale * torch.randn(len(LENGTHS), max(LENGTHS), generator=torch.Generator().manual_seed(seed))


def rows() -> Rows:
    """A micro-batch far enough from the old policy that some ratios are clipped."""
    mask = token_mask(torch.tensor(LENGTHS), max(LENGTHS))
    return Rows(random(0, 0.3), random(1, 0.3), random(2, 0.3), random(3), random(4).abs(), mask, 0.4)


def clipped(ratio: float, advantage: float) -> float:
    return min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)


def test_group_advantages_by_hand() -> None:
    got = group_advantages(torch.tensor([1.0, 3.0, 2.0, 2.0, 7.0, 7.0]), torch.tensor([0, 0, 1, 1, 2, 2]))
    spread = math.sqrt(2)
    assert got.tolist() == pytest.approx([-1 / spread, 1 / spread, 0, 0, 0, 0], abs=1e-3)
    three = group_advantages(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0, 0, 0]))
    assert three.tolist() == pytest.approx([-2 / math.sqrt(7), -1 / math.sqrt(7), 3 / math.sqrt(7)], abs=1e-3)


def test_a_group_is_without_what_was_left_out() -> None:
    """Of four answers to a prompt one, of the next three, of the third all were left out."""
    scores, groups = torch.tensor([0.0, 1.0, 5.0, 9.0, 2.0, 4.0]), torch.tensor([0, 0, 0, 1, 3, 3])
    whole = group_advantages(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0, 0, 0])).tolist()
    pair = group_advantages(torch.tensor([2.0, 4.0]), torch.tensor([0, 0])).tolist()
    assert group_advantages(scores, groups).tolist() == pytest.approx([*whole, 0.0, *pair])
    assert leave_one_out_advantages(scores, groups).tolist() == pytest.approx([-3.0, -1.5, 4.5, 0.0, -2.0, 2.0])


def test_grpo_is_equation_3_of_its_paper() -> None:
    """Mean over answers of the mean over tokens of ``clipped - beta (r - log r - 1)``, negated."""
    batch = rows()
    algorithm = ALGORITHMS[run_pb2.ALGORITHM_GRPO](ppo_spec(algorithm="ALGORITHM_GRPO"))
    terms = algorithm.terms(batch)
    expected = 0.0
    for i, length in enumerate(LENGTHS):
        inner = 0.0
        for t in range(length):
            ratio = math.exp(batch.logprobs[i, t] - batch.old_logprobs[i, t])
            back = math.exp(batch.reference_logprobs[i, t] - batch.logprobs[i, t])
            inner += clipped(ratio, float(batch.advantages[i, t])) * float(batch.weights[i, t])
            inner -= 0.4 * (back - math.log(back) - 1)
        expected -= inner / length / len(LENGTHS)
    assert float(terms.loss.sum() / algorithm.count(batch.mask)) == pytest.approx(expected, abs=1e-5)


def test_leave_one_out_by_hand() -> None:
    got = leave_one_out_advantages(torch.tensor([1.0, 4.0, 7.0, 2.0, 2.0, 2.0]), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert got.tolist() == [1 - 5.5, 0.0, 7 - 2.5, 0, 0, 0]


def test_rloo_weighs_whole_answers() -> None:
    batch = rows()
    algorithm = ALGORITHMS[run_pb2.ALGORITHM_RLOO](ppo_spec(algorithm="ALGORITHM_RLOO"))
    terms = algorithm.terms(batch)
    expected, ratios = 0.0, []
    for i, length in enumerate(LENGTHS):
        ratios.append(math.exp(sum(float(batch.logprobs[i, t] - batch.old_logprobs[i, t]) for t in range(length))))
        expected -= clipped(ratios[-1], float(batch.advantages[i, 0])) * float(batch.weights[i, 0]) / len(LENGTHS)
    assert float(terms.loss.sum() / algorithm.count(batch.mask)) == pytest.approx(expected, abs=1e-5)
    assert terms.numbers["ratio_mean"].tolist() == pytest.approx(ratios, rel=1e-5)


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("drift", [-0.0056, 0.0056])
def test_rloo_of_a_long_answer_that_has_drifted_is_finite(advantage: float, drift: float) -> None:
    """16,000 tokens that each moved a little: e^90 is more than float32 holds."""
    old = torch.full((1, 16_000), -2.0)
    new = (old + drift).requires_grad_()
    ones = torch.ones_like(old)
    spec = ppo_spec(algorithm="ALGORITHM_RLOO")
    terms = ALGORITHMS[run_pb2.ALGORITHM_RLOO](spec).terms(Rows(new, old, old, advantage * ones, ones, ones > 0, 0.0))
    torch.autograd.backward(terms.loss.sum())
    assert new.grad is not None
    assert torch.isfinite(terms.loss).all()
    assert torch.isfinite(new.grad).all()
    assert all(torch.isfinite(numbers).all() for numbers in terms.numbers.values())


def test_rloo_bounds_the_loss_of_a_bad_answer_by_the_dual_clip() -> None:
    """500 tokens at +0.02 nats: the ratio is e^10 = 22,026, the loss at most 3 times the advantage (Ye et al. 2020)."""
    old = torch.full((1, 500), -2.0)
    ones = torch.ones_like(old)
    batch = Rows(old + 0.02, old, old, -ones, ones, ones > 0, 0.0)
    for dual_clip, loss in ((None, math.exp(10)), (3.0, 3.0)):
        spec = ppo_spec(algorithm="ALGORITHM_RLOO", dual_clip=dual_clip)
        terms = ALGORITHMS[run_pb2.ALGORITHM_RLOO](spec).terms(batch)
        assert float(terms.loss.sum()) == pytest.approx(loss, rel=1e-3)


def test_rloo_gradient_is_the_papers_at_the_start() -> None:
    """``(1/k) sum (R_i - baseline) grad log p(y_i)``: equation 5 of Ahmadian et al. 2024, with ratios of 1."""
    batch = rows()
    new = batch.old_logprobs.clone().requires_grad_()
    algorithm = ALGORITHMS[run_pb2.ALGORITHM_RLOO](ppo_spec(algorithm="ALGORITHM_RLOO"))
    ones = torch.ones_like(batch.weights)
    torch.autograd.backward(algorithm.terms(batch._replace(logprobs=new, weights=ones)).loss.sum())
    assert new.grad is not None
    expected = torch.where(batch.mask, -batch.advantages[:, :1], 0.0)
    torch.testing.assert_close(new.grad, expected)


def test_rewards_to_go() -> None:
    rewards, mask = random(5), token_mask(torch.tensor(LENGTHS), max(LENGTHS))
    got = rewards_to_go(rewards, mask, gamma=0.9)
    for i, length in enumerate(LENGTHS):
        for t in range(max(LENGTHS)):
            expected = sum(0.9 ** (u - t) * float(rewards[i, u]) for u in range(t, length))
            assert float(got[i, t]) == pytest.approx(expected, abs=1e-5)


def test_dpo_loss_is_the_cross_entropy_of_the_margin() -> None:
    margins, labels = 4 * random(6).flatten(), torch.rand(32, generator=torch.Generator().manual_seed(7))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(margins, labels, reduction="none")
    torch.testing.assert_close(dpo_loss(margins, labels), expected)


def test_online_dpo_compares_neighbours() -> None:
    batch = rows()
    # The third pair is a tie but for rounding.
    labels = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.5 - 3e-8, 0.5 + 3e-8, 1.0, 0.0])
    batch = batch._replace(advantages=labels.unsqueeze(1) * batch.mask)
    algorithm = ALGORITHMS[run_pb2.ALGORITHM_ONLINE_DPO](ppo_spec(algorithm="ALGORITHM_ONLINE_DPO", dpo_beta=0.5))
    terms = algorithm.terms(batch)
    lead, right = [], []
    for pair in range(4):
        sums = [
            sum(float(batch.logprobs[i, t] - batch.reference_logprobs[i, t]) for t in range(LENGTHS[i]))
            for i in (2 * pair, 2 * pair + 1)
        ]
        margin, label = 0.5 * (sums[0] - sums[1]), float(labels[2 * pair])
        chance = 1 / (1 + math.exp(-margin))
        expected = -label * math.log(chance) - (1 - label) * math.log(1 - chance)
        assert float(terms.loss[pair]) == pytest.approx(expected, abs=1e-5)
        lead.append(0 if pair == 2 else margin * (label > 0.5) - margin * (label < 0.5))
        right += [float((margin > 0) == (label > 0.5))] if pair != 2 else []
    assert terms.numbers["dpo_margin"].tolist() == pytest.approx(lead, abs=1e-5)
    assert terms.numbers["dpo_accuracy"].tolist() == right
    assert algorithm.count(batch.mask) == 4


def targets_of(name: str, model: Path, change: Callable[[Episodes], None]) -> tuple[Tensor, Tensor]:
    """Advantages and mask that an algorithm derives from scored episodes."""
    learner = make_learner(model, algorithm=name, samples_per_prompt=2)
    episodes = make_episodes(count=8)
    change(episodes)
    seen: list[Tensor] = []
    learner.update = lambda _, __, targets, *, train_actor: seen.append(targets.advantages) or {}  # type: ignore
    learn(learner, episodes, 1, Controls(0.05))
    return seen[0], episodes.mask


@pytest.mark.parametrize("name", ["GRPO", "RLOO", "REINFORCE_PLUS_PLUS"])
def test_advantages_follow_the_scores(tiny_model: Path, name: str) -> None:
    """The better of two answers has the greater advantage at each token, and a shift of all scores changes nothing."""

    def plain(episodes: Episodes) -> None:
        episodes.ended[:] = True

    def shifted(episodes: Episodes) -> None:
        plain(episodes)
        episodes.scores.add_(3.0)

    advantages, mask = targets_of(f"ALGORITHM_{name}", tiny_model, plain)
    moved, _ = targets_of(f"ALGORITHM_{name}", tiny_model, shifted)
    torch.testing.assert_close(moved, advantages, atol=1e-4, rtol=1e-3)
    scores = make_episodes(count=8).scores
    for pair in range(4):
        one, other = (2 * pair, 2 * pair + 1) if scores[2 * pair] > scores[2 * pair + 1] else (2 * pair + 1, 2 * pair)
        assert advantages[one][mask[one]].min() > advantages[other][mask[other]].max()
    assert not advantages[~mask].any()


@pytest.mark.parametrize("algorithm", [run_pb2.Algorithm.Name(number) for number in ALGORITHMS])
def test_micro_batches_change_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    """With all options on, a step in small micro-batches gives the parameters of a step in one batch."""
    after = []
    episodes = make_episodes(count=8)
    if algorithm == "ALGORITHM_ONLINE_DPO":
        for pair in range(4):
            episodes.scores[2 * pair] = probability = 0.2 * pair
            episodes.scores[2 * pair + 1] = 1 - probability
    for budget in (25, 10_000):
        monkeypatch.setattr(update, "BACKWARD_TOKENS", budget)
        learner = make_learner(
            tiny_model,
            algorithm=algorithm,
            epochs=2,
            minibatches=2,
            learning_rate=1e-3,
            critic_learning_rate=1e-3,
            entropy_coefficient=0.01,
            dual_clip=3.0,
            normalise_scores=algorithm != "ALGORITHM_ONLINE_DPO",
            score_clip=2.0,
        )
        start = copy.deepcopy(learner.actor.state_dict())
        torch.manual_seed(3)
        numbers, _, _ = learn(learner, episodes, 1, Controls(0.05))
        assert all(math.isfinite(value) for value in numbers.values())
        assert not all(torch.equal(tensor, start[name]) for name, tensor in learner.actor.state_dict().items())
        after.append(learner.actor.state_dict())
    for name, tensor in after[0].items():
        torch.testing.assert_close(tensor, after[1][name], rtol=0, atol=2e-5, msg=name)

"""The shared formulas against loops in NumPy, numbers worked out by hand, and torch's own distributions."""

import math

import numpy as np
import pytest
import torch
from charter.worker.reinforcement import formulas
from charter.worker.training.batches import token_mask
from torch import Tensor, nn

LENGTHS = torch.tensor([4, 1, 6, 3])
WIDTH = 6


@pytest.fixture
def mask() -> Tensor:
    return token_mask(LENGTHS, WIDTH)


def random(seed: int, scale: float = 1.0) -> Tensor:
    """Also on padding, so that a formula that reads it gives a wrong number."""
    return scale * torch.randn(len(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed))


def test_token_mask() -> None:
    assert token_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_masked_mean_ignores_padding(mask: Tensor) -> None:
    values = random(0)
    values[~mask] = math.nan
    expected = np.concatenate([values[i, :n].numpy() for i, n in enumerate(LENGTHS.tolist())]).mean()
    assert formulas.masked_mean(values, mask).item() == pytest.approx(expected, rel=1e-6)


def test_kl_estimators_agree_with_the_exact_kl() -> None:
    """k1 and k3 are unbiased; k2 is close for close distributions. The exact KL sums the vocabulary."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, generator=generator)
    logprobs = logits.log_softmax(0)
    reference = (logits + 0.3 * torch.randn(8, generator=generator)).log_softmax(0)
    exact = nn.functional.kl_div(reference, logprobs, log_target=True, reduction="sum").item()
    # Every outcome once, weighted by its probability: the estimators' expectations without sampling noise.
    arguments = (logprobs.unsqueeze(0), reference.unsqueeze(0), torch.ones(1, 8, dtype=torch.bool))
    probabilities = logprobs.exp()
    assert (probabilities * formulas.kl_k1(*arguments)).sum().item() == pytest.approx(exact, abs=1e-6)
    assert (probabilities * formulas.kl_k3(*arguments)).sum().item() == pytest.approx(exact, abs=1e-6)


def test_what_a_policy_that_ran_away_says_is_finite() -> None:
    """e^90 is more than float32 holds; the ratio is bounded at e^20 and e^-20, and k3 where it grows."""
    logprobs, other = torch.tensor([[-1.0, -91.0]], requires_grad=True), torch.tensor([[-91.0, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    most = math.exp(20)
    ratio = formulas.probability_ratio(logprobs, other, mask)
    assert ratio.tolist()[0] == pytest.approx([most, 1 / most], rel=1e-5)
    weights = formulas.truncated_importance_weights(logprobs, other, mask, 2.0)
    assert weights.tolist()[0] == pytest.approx([2.0, 1 / most])
    k3 = formulas.kl_k3(logprobs, other, mask)
    assert k3.tolist()[0] == pytest.approx([89.0, most - 21], rel=1e-5)
    torch.autograd.backward((ratio + k3).sum())
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()


def test_kl_estimators_by_hand() -> None:
    logprobs, reference = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, 5.0]])
    mask = torch.tensor([[True, True, False]])
    assert formulas.kl_k1(logprobs, reference, mask).tolist() == [[0.5, -1.0, 0.0]]
    expected = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0, 0.0]
    assert formulas.kl_k3(logprobs, reference, mask).tolist()[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kl", "factor"),
    # Errors inside and outside the clip at 0.2; the gain is 0.1.
    [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (5.4, 0.99), (0.0, 0.98), (-3.0, 0.98)],
)
def test_adaptive_kl_coefficient(kl: float, factor: float) -> None:
    """Ziegler et al. 2019, section 2.2, worked out by hand for a target of 6 nats."""
    assert formulas.adapt_kl_coefficient(0.05, kl, target=6.0) == pytest.approx(0.05 * factor)


def test_token_rewards(mask: Tensor) -> None:
    kl = random(2)
    scores = torch.tensor([1.5, -0.5, 0.25, 2.0])
    got = formulas.token_rewards(scores, kl, mask, kl_coefficient=0.1)
    for i, n in enumerate(LENGTHS.tolist()):
        expected = np.zeros(WIDTH)
        for t in range(n):
            expected[t] = -0.1 * kl[i, t].item()
        expected[n - 1] += scores[i].item()
        assert got[i].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_answer_scores_by_hand() -> None:
    """The penalty comes after the clip, so that a cut-off answer is never as good as a whole one."""
    scores, ended = torch.tensor([1.5, -0.5, 9.0, -9.0]), torch.tensor([True, False, False, True])
    got = formulas.answer_scores(scores, ended, clip=None, missing_eos_penalty=1.25)
    assert got.tolist() == [1.5, -1.75, 7.75, -9.0]
    got = formulas.answer_scores(scores, ended, clip=2.0, missing_eos_penalty=1.25)
    assert got.tolist() == [1.5, -1.75, 0.75, -2.0]


def test_scores_are_normalised_by_all_that_were_seen() -> None:
    """Three steps of unequal size and level: mean and variance are NumPy's of everything so far."""
    moments, seen = formulas.Moments(), np.array([])
    for seed, (size, level) in enumerate([(3, 0.0), (7, 40.0), (1, -5.0)]):
        scores = level + 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
        seen = np.concatenate([seen, scores.double().numpy()])
        moments = formulas.add_moments(moments, scores)
        assert moments == pytest.approx((len(seen), seen.mean(), ((seen - seen.mean()) ** 2).sum()), rel=1e-12)
        expected = (scores.double().numpy() - seen.mean()) / np.sqrt(seen.var() + 1e-8)
        assert formulas.normalise_scores(scores, moments).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_whiten(mask: Tensor) -> None:
    values = random(7, scale=5.0) + 3
    valid = np.concatenate([values[i, :n].numpy() for i, n in enumerate(LENGTHS.tolist())])
    expected = (valid - valid.mean()) / np.sqrt(valid.var() + 1e-8)
    got = formulas.whiten(values, mask)
    assert got[mask].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert not got[~mask].any()


def test_truncated_importance_weights(mask: Tensor) -> None:
    trainer, sampler = random(8), random(9)
    weights = formulas.truncated_importance_weights(trainer, sampler, mask, cap=1.5)
    plain = np.exp(trainer.numpy() - sampler.numpy()) * mask.numpy()
    assert weights.numpy() == pytest.approx(np.minimum(plain, 1.5), rel=1e-5)
    assert (plain > 1.5).any()


def test_policy_loss(mask: Tensor) -> None:
    new, old, advantages = random(10, 0.3), random(11, 0.3), random(12)
    weights = random(13).abs()
    got = formulas.policy_loss(new, old, advantages, mask, ratio_clip=0.2, weights=weights)
    clipped = 0
    for i, n in enumerate(LENGTHS.tolist()):
        for t in range(n):
            ratio = math.exp(new[i, t].item() - old[i, t].item())
            advantage = advantages[i, t].item()
            objective = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            assert got.loss[i, t].item() == pytest.approx(-objective * weights[i, t].item(), abs=1e-5)
            assert got.ratio[i, t].item() == pytest.approx(ratio, rel=1e-5)
            outside = (ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0)
            assert bool(got.clipped[i, t]) == outside
            clipped += outside
    assert clipped
    assert not got.loss[~mask].any()
    assert not got.clipped[~mask].any()


def test_policy_gradient_is_the_advantage_at_the_start_and_zero_where_clipped() -> None:
    """At ratio 1 the gradient of the loss is -A per token (the policy gradient); beyond the clip it is 0."""
    advantages = torch.tensor([[2.0, -3.0, 1.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    old = torch.tensor([[-1.0, -2.0, -3.0]])
    new = old.clone().requires_grad_()
    torch.autograd.backward(formulas.policy_loss(new, old, advantages, mask, ratio_clip=0.2).loss.sum())
    assert new.grad is not None
    assert new.grad.tolist() == [[-2.0, 3.0, -1.0]]
    far = (old + torch.tensor([[0.5, -0.5, -0.5]])).requires_grad_()
    torch.autograd.backward(formulas.policy_loss(far, old, advantages, mask, ratio_clip=0.2).loss.sum())
    assert far.grad is not None
    # The third moved against its advantage: that is never clipped.
    assert far.grad[0, :2].tolist() == [0.0, 0.0]
    assert far.grad[0, 2].item() == pytest.approx(-math.exp(-0.5))


def test_dual_clip_bounds_the_loss_of_bad_tokens_only() -> None:
    """Ye et al. 2020, equation 5: ``max(min(r A, clip(r) A), c A)`` where A < 0, PPO's objective elsewhere."""
    ratios, advantages = torch.meshgrid(
        torch.tensor([0.5, 1.0, 2.0, 5.0, 20.0]), torch.tensor([-2.0, 2.0]), indexing="ij"
    )
    ratios, advantages = ratios.reshape(1, -1), advantages.reshape(1, -1)
    mask = torch.ones_like(ratios, dtype=torch.bool)
    new = ratios.log().requires_grad_()
    got = formulas.policy_loss(new, torch.zeros_like(ratios), advantages, mask, ratio_clip=0.2, dual_clip=3.0)
    torch.autograd.backward(got.loss.sum())
    assert new.grad is not None
    for place, (ratio, advantage) in enumerate(zip(ratios[0].tolist(), advantages[0].tolist(), strict=True)):
        objective = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        if advantage < 0:
            objective = max(objective, 3.0 * advantage)
        assert got.loss[0, place].item() == pytest.approx(-objective, rel=1e-5)
        beyond = advantage < 0 and ratio > 3
        assert bool(got.clipped[0, place]) == (beyond or ratio * advantage != pytest.approx(objective))
        if beyond:
            assert new.grad[0, place] == 0

"""PPO's formulas against loops in NumPy, against numbers worked out by hand, and against torch's own distributions."""

import math

import numpy as np
import pytest
import torch
from charter.worker import ppo
from torch import Tensor, nn

LENGTHS = torch.tensor([4, 1, 6, 3])
WIDTH = 6


@pytest.fixture
def mask() -> Tensor:
    return ppo.token_mask(LENGTHS, WIDTH)


def random(seed: int, scale: float = 1.0) -> Tensor:
    """Also on padding, so that a formula that reads it gives a wrong number."""
    return scale * torch.randn(len(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed))


def test_token_mask() -> None:
    assert ppo.token_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_masked_mean_ignores_padding(mask: Tensor) -> None:
    values = random(0)
    values[~mask] = math.nan
    expected = np.concatenate([values[i, :n].numpy() for i, n in enumerate(LENGTHS.tolist())]).mean()
    assert ppo.masked_mean(values, mask).item() == pytest.approx(expected, rel=1e-6)


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
    assert (probabilities * ppo.kl_k1(*arguments)).sum().item() == pytest.approx(exact, abs=1e-6)
    assert (probabilities * ppo.kl_k3(*arguments)).sum().item() == pytest.approx(exact, abs=1e-6)
    assert (probabilities * ppo.kl_k2(*arguments)).sum().item() == pytest.approx(exact, rel=0.15)


def test_kl_estimators_by_hand() -> None:
    logprobs, reference = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, 5.0]])
    mask = torch.tensor([[True, True, False]])
    assert ppo.kl_k1(logprobs, reference, mask).tolist() == [[0.5, -1.0, 0.0]]
    assert ppo.kl_k2(logprobs, reference, mask).tolist() == [[0.125, 0.5, 0.0]]
    expected = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0, 0.0]
    assert ppo.kl_k3(logprobs, reference, mask).tolist()[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kl", "factor"),
    # Errors inside and outside the clip at 0.2; the gain is 0.1.
    [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (5.4, 0.99), (0.0, 0.98), (-3.0, 0.98)],
)
def test_adaptive_kl_coefficient(kl: float, factor: float) -> None:
    """Ziegler et al. 2019, section 2.2, worked out by hand for a target of 6 nats."""
    assert ppo.adapt_kl_coefficient(0.05, kl, target=6.0) == pytest.approx(0.05 * factor)


def test_token_rewards(mask: Tensor) -> None:
    kl = random(2)
    scores = torch.tensor([1.5, -0.5, 0.25, 2.0])
    ended = torch.tensor([True, False, True, False])
    got = ppo.token_rewards(scores, ended, kl, mask, kl_coefficient=0.1, missing_eos_penalty=1.25)
    for i, n in enumerate(LENGTHS.tolist()):
        expected = np.zeros(WIDTH)
        for t in range(n):
            expected[t] = -0.1 * kl[i, t].item()
        expected[n - 1] += scores[i].item() - (0.0 if ended[i] else 1.25)
        assert got[i].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def gae_by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The sum of discounted residuals, written out for each start (Schulman et al. 2016, equation 16)."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    residuals = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * residuals[t + k] for k in range(n - t)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_generalised_advantages(mask: Tensor, gamma: float, lam: float) -> None:
    rewards, values = random(3), random(4)
    advantages, returns = ppo.generalised_advantages(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for i, n in enumerate(LENGTHS.tolist()):
        expected = gae_by_definition(rewards[i, :n].tolist(), values[i, :n].tolist(), gamma, lam)
        assert advantages[i, :n].tolist() == pytest.approx(expected, abs=1e-5)
        assert returns[i, :n].tolist() == pytest.approx((np.array(expected) + values[i, :n].numpy()).tolist(), abs=1e-5)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_lambda_one_gives_the_return_minus_the_value(mask: Tensor) -> None:
    """With lambda = 1 the advantage is the discounted return less the value, whatever the values are."""
    rewards, values = random(5), random(6)
    _, returns = ppo.generalised_advantages(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    for i, n in enumerate(LENGTHS.tolist()):
        expected = np.cumsum(rewards[i, :n].numpy()[::-1])[::-1]
        assert returns[i, :n].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_whiten(mask: Tensor) -> None:
    values = random(7, scale=5.0) + 3
    valid = np.concatenate([values[i, :n].numpy() for i, n in enumerate(LENGTHS.tolist())])
    expected = (valid - valid.mean()) / np.sqrt(valid.var() + 1e-8)
    got = ppo.whiten(values, mask)
    assert got[mask].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert not got[~mask].any()


def test_truncated_importance_weights(mask: Tensor) -> None:
    trainer, sampler = random(8), random(9)
    weights, ratio = ppo.truncated_importance_weights(trainer, sampler, mask, cap=1.5)
    plain = np.exp(trainer.numpy() - sampler.numpy()) * mask.numpy()
    assert ratio.numpy() == pytest.approx(plain, rel=1e-5)
    assert weights.numpy() == pytest.approx(np.minimum(plain, 1.5), rel=1e-5)
    assert (plain > 1.5).any()


def test_policy_loss(mask: Tensor) -> None:
    new, old, advantages = random(10, 0.3), random(11, 0.3), random(12)
    weights = random(13).abs()
    got = ppo.policy_loss(new, old, advantages, mask, ratio_clip=0.2, weights=weights)
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
    torch.autograd.backward(ppo.policy_loss(new, old, advantages, mask, ratio_clip=0.2).loss.sum())
    assert new.grad is not None
    assert new.grad.tolist() == [[-2.0, 3.0, -1.0]]
    far = (old + torch.tensor([[0.5, -0.5, -0.5]])).requires_grad_()
    torch.autograd.backward(ppo.policy_loss(far, old, advantages, mask, ratio_clip=0.2).loss.sum())
    assert far.grad is not None
    # The third moved against its advantage: that is never clipped.
    assert far.grad[0, :2].tolist() == [0.0, 0.0]
    assert far.grad[0, 2].item() == pytest.approx(-math.exp(-0.5))


def test_value_loss(mask: Tensor) -> None:
    values, old, returns = random(14), random(15), random(16)
    got = ppo.value_loss(values, old, returns, mask, value_clip=0.2)
    clipped = 0
    for i, n in enumerate(LENGTHS.tolist()):
        for t in range(n):
            v, v_old, target = values[i, t].item(), old[i, t].item(), returns[i, t].item()
            near = v_old + min(max(v - v_old, -0.2), 0.2)
            expected = 0.5 * max((v - target) ** 2, (near - target) ** 2)
            assert got.loss[i, t].item() == pytest.approx(expected, abs=1e-5)
            assert bool(got.clipped[i, t]) == ((near - target) ** 2 > (v - target) ** 2)
            clipped += bool(got.clipped[i, t])
    assert clipped
    assert not got.loss[~mask].any()


def test_fit_values(mask: Tensor) -> None:
    values = random(19)
    returns = 0.4 * values + 1.5 + random(20, 0.1)
    slope, intercept = ppo.fit_values(values, returns, mask)
    expected_slope, expected_intercept = np.polyfit(values[mask].numpy(), returns[mask].numpy(), 1)
    assert (slope, intercept) == pytest.approx((expected_slope, expected_intercept), rel=1e-4)
    assert ppo.explained_variance(slope * values + intercept, returns, mask) == pytest.approx(
        np.corrcoef(values[mask].numpy(), returns[mask].numpy())[0, 1] ** 2, rel=1e-4
    )
    mean = returns[mask].mean().item()
    assert ppo.fit_values(-values, returns, mask) == pytest.approx((0.0, mean), rel=1e-5)
    assert ppo.fit_values(torch.full_like(values, 3.0), returns, mask) == pytest.approx((0.0, mean), rel=1e-5)


def test_explained_variance(mask: Tensor) -> None:
    returns = random(17)
    assert ppo.explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert ppo.explained_variance(torch.full_like(returns, 0.7), returns, mask) == pytest.approx(0.0, abs=1e-6)
    values = random(18)
    residual, valid = (returns - values)[mask].numpy(), returns[mask].numpy()
    assert ppo.explained_variance(values, returns, mask) == pytest.approx(1 - residual.var() / valid.var(), rel=1e-4)
    assert ppo.explained_variance(values, torch.ones_like(returns), mask) is None

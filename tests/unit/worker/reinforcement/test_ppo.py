"""PPO's own formulas against loops in NumPy and numbers worked out by hand."""

import numpy as np
import pytest
import torch
from charter.worker.reinforcement.algorithms import ppo
from charter.worker.training.batches import token_mask
from charter.worker.training.models import ValueHead
from torch import Tensor

LENGTHS = torch.tensor([4, 1, 6, 3])
WIDTH = 6


@pytest.fixture
def mask() -> Tensor:
    return token_mask(LENGTHS, WIDTH)


def random(seed: int, scale: float = 1.0) -> Tensor:
    """Also on padding, so that a formula that reads it gives a wrong number."""
    return scale * torch.randn(len(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed))


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


def first_step(seed: int, correlation: float) -> tuple[Tensor, Tensor, Tensor]:
    """16 answers of a few tokens, one return each: values that correlate with it, returns, mask."""
    generator = torch.Generator().manual_seed(seed)
    returns = torch.randn(16, generator=generator)
    values = correlation * returns + (1 - correlation**2) ** 0.5 * torch.randn(16, generator=generator)
    scattered = values[:, None] + 0.3 * torch.randn(16, 12, generator=generator)
    lengths = torch.randint(4, 13, (16,), generator=generator)
    return scattered, returns[:, None].expand(16, 12), token_mask(lengths, 12)


def test_the_start_of_a_critic_survives_the_noise_of_16_answers() -> None:
    """Values that correlate with the returns at 0.3: a slope of 0 would have them learned anew."""
    slopes = [ppo.fit_values(*first_step(seed, 0.3))[0] for seed in range(300)]
    assert sum(slope == 0.0 for slope in slopes) <= 3
    assert min(slopes) >= 0.0
    # Where the answers say it clearly, they are believed.
    assert all(ppo.fit_values(*first_step(seed, -0.95))[0] == 0.0 for seed in range(20))


def test_one_answer_leaves_the_slope_of_the_critic(mask: Tensor) -> None:
    only = mask & (torch.arange(len(mask)) == 0)[:, None]
    values = random(19)
    assert ppo.fit_values(values, 0.2 * values, only)[0] == 1.0


def test_the_critic_is_fitted_to_discounted_returns(mask: Tensor) -> None:
    head = ValueHead(3)
    rewards = random(21)
    values = ppo.calibrate(head, torch.zeros_like(rewards), rewards, mask, gamma=0.5)
    to_go = [
        sum(0.5 ** (u - t) * float(rewards[i, u]) for u in range(t, n))
        for i, n in enumerate(LENGTHS.tolist())
        for t in range(n)
    ]
    assert values[mask].tolist() == pytest.approx([float(np.mean(to_go))] * len(to_go), rel=1e-5)
    assert head.bias.item() == pytest.approx(float(np.mean(to_go)), rel=1e-5)


def test_explained_variance(mask: Tensor) -> None:
    returns = random(17)
    assert ppo.explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert ppo.explained_variance(torch.full_like(returns, 0.7), returns, mask) == pytest.approx(0.0, abs=1e-6)
    values = random(18)
    residual, valid = (returns - values)[mask].numpy(), returns[mask].numpy()
    assert ppo.explained_variance(values, returns, mask) == pytest.approx(1 - residual.var() / valid.var(), rel=1e-4)
    assert ppo.explained_variance(values, torch.ones_like(returns), mask) is None

"""PPO with a learned critic.

Schulman et al. 2017 ("PPO", arXiv 1707.06347), equation 7, on advantages by Schulman et al. 2016 ("GAE", arXiv
1506.02438); details as in Huang et al. 2024 ("N+", arXiv 2403.17031).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from charter.worker.reinforcement import formulas
from charter.worker.reinforcement.algorithms.base import Algorithm, Experience, Rows, Targets, Terms
from charter.worker.reinforcement.algorithms.clipped import clipped_terms, token_weights
from charter.worker.training.models import ValueHead


class Ppo(Algorithm):
    """KL penalty and score as rewards of the tokens, advantages by GAE, whitened over the step."""

    needs_critic = True

    def targets(self, experience: Experience, value_head: ValueHead | None) -> Targets:
        """Advantages and returns. Before the first step the critic's scale and level are fitted to the returns."""
        assert value_head is not None
        assert experience.old.values is not None
        mask, values = experience.mask, experience.old.values
        rewards = formulas.token_rewards(
            experience.scores, experience.kl, mask, kl_coefficient=experience.kl_coefficient
        )
        if experience.step == 0:
            values = calibrate(value_head, values, rewards, mask, gamma=self.spec.gamma)
        advantages, returns = generalised_advantages(
            rewards, values, mask, gamma=self.spec.gamma, gae_lambda=self.spec.gae_lambda
        )
        return Targets(
            formulas.whiten(advantages, mask), token_weights(experience, self.spec), rewards, values, returns
        )

    def terms(self, rows: Rows) -> Terms:
        """The clipped surrogate of each token."""
        return clipped_terms(rows, self.spec)

    def count(self, mask: Tensor) -> int:
        """The mean is over tokens."""
        return int(mask.sum())


def calibrate(value_head: ValueHead, values: Tensor, rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Fit the critic's scale and level to the first step's discounted rewards to go; the values that it has then.

    The preference model is only read at EOS, so its values elsewhere can be off by more than the returns vary; a run of
    few steps would then follow the critic's noise.
    """
    _, returns = generalised_advantages(rewards, torch.zeros_like(rewards), mask, gamma=gamma, gae_lambda=1.0)
    slope, intercept = fit_values(values, returns, mask)
    value_head.rescale(slope, intercept)
    return (slope * values + intercept).masked_fill(~mask, 0.0)


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns by GAE (Schulman et al. 2016, equations 12 and 16), both [episodes, tokens].

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = delta_t + gamma lambda A_{t+1}``, ``R_t = A_t + V_t``. The answer's
    end is terminal: behind its last token value and advantage are 0.

    Args:
        rewards: [episodes, tokens].
        values: of the state before each token, [episodes, tokens].
    """
    values = values.masked_fill(~mask, 0.0)
    rewards = rewards.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # On padding delta and both carried terms are 0, so the first valid token from the right starts afresh.
        next_advantage = delta + gamma * gae_lambda * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


class ValueLoss(NamedTuple):
    """Terms of the value loss, each [episodes, tokens]."""

    loss: Tensor
    # True where the clipped term was the larger one.
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, value_clip: float) -> ValueLoss:
    """Clipped squared error of each value: ``max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2``.

    As in openai/baselines' ppo2, openai/lm-human-preferences and N+ (general PPO details).

    Args:
        values: with gradient, [episodes, tokens].
        old_values: at the start of the step, [episodes, tokens].
        returns: [episodes, tokens], without gradient.
    """
    near = torch.minimum(torch.maximum(values, old_values - value_clip), old_values + value_clip)
    unclipped = (values - returns).square()
    limited = (near - returns).square()
    loss = 0.5 * torch.maximum(unclipped, limited)
    return ValueLoss(loss.masked_fill(~mask, 0.0), (limited > unclipped) & mask)


def fit_values(values: Tensor, returns: Tensor, mask: Tensor) -> tuple[float, float]:
    """Slope >= 0 and intercept of the least-squares line from values to returns, over the valid tokens.

    A critic with slope 0 has to learn its head anew, so a few answers must not bring that about by chance: the slope is
    at least its standard error, clustered by answer because an answer's returns are nearly one number (Liang and Zeger
    1986, "Longitudinal data analysis using generalized linear models"). It is 0 where it lies more than three standard
    errors below 0, which turns the critic's order around, and where values do not vary.
    """
    x, y = values[mask].double(), returns[mask].double()
    x_centred, y_centred = x - x.mean(), y - y.mean()
    spread = x_centred.square().sum()
    slope = 0.0
    if spread > 1e-12:
        best = float((x_centred * y_centred).sum() / spread)
        error = _clustered_error(x_centred, y_centred - best * x_centred, mask)
        slope = max(best, error) if best > -3 * error else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())


def _clustered_error(x: Tensor, residuals: Tensor, mask: Tensor) -> float:
    """Standard error of a slope, its residuals clustered by answer; ``x`` (of mean 0) and residuals [valid tokens].

    One answer alone tells nothing about it: 1, the slope of a critic that stays as it is.
    """
    answers = int(mask.any(dim=1).sum())
    if answers < 2:
        return 1.0
    scores = torch.zeros(len(mask), dtype=x.dtype).index_add(0, mask.nonzero()[:, 0], x * residuals)
    return math.sqrt(answers / (answers - 1)) * float(scores.norm() / x.square().sum())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """``1 - Var(R - V) / Var(R)`` over the valid tokens: 1 is a perfect critic, 0 one that knows only a constant.

    None when the returns do not vary.
    """
    valid_returns = returns[mask].double()
    spread = valid_returns.var(correction=0)
    if spread <= 1e-12:
        return None
    return float(1 - (valid_returns - values[mask].double()).var(correction=0) / spread)

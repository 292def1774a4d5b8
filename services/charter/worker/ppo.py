"""PPO's formulas as pure functions.

Tensors of shape [episodes, tokens] hold one row per answer, right-padded; ``mask`` is True on the answer's tokens (EOS
included) and False on padding. Results are 0 on padding. Log-probs are in nats, at the sampling temperature.

Sources: Schulman et al. 2017 ("PPO", arXiv 1707.06347); Schulman et al. 2016 ("GAE", arXiv 1506.02438); Ziegler et al.
2019 ("Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593); Huang et al. 2024 ("The N+ Implementation
Details of RLHF with PPO", arXiv 2403.17031), here "N+"; Schulman 2020 ("Approximating KL divergence", joschu.net/blog).
"""

from typing import NamedTuple

import torch
from torch import Tensor


def token_mask(lengths: Tensor, width: int) -> Tensor:
    """True on the first ``lengths[i]`` tokens of row i; int64 [episodes] -> bool [episodes, width]."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens of the whole batch; both [episodes, tokens] -> scalar."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``log p - log p_ref`` of each sampled token: unbiased for KL(p, p_ref), may be negative (Schulman 2020, k1)."""
    return (logprobs - reference_logprobs).masked_fill(~mask, 0.0)


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``(log p - log p_ref)^2 / 2``: biased, never negative, low variance near 0 (Schulman 2020, k2)."""
    return 0.5 * (logprobs - reference_logprobs).masked_fill(~mask, 0.0).square()


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``r - 1 - log r`` with ``r = p_ref / p``: unbiased and never negative (Schulman 2020, k3)."""
    log_ratio = (reference_logprobs - logprobs).masked_fill(~mask, 0.0)
    return torch.expm1(log_ratio) - log_ratio


def adapt_kl_coefficient(coefficient: float, kl: float, target: float, gain: float = 0.1) -> float:
    """Next KL coefficient of the log-space proportional controller (Ziegler et al. 2019, section 2.2).

    ``e = clip((KL - target) / target, -0.2, 0.2)``, ``b' = b (1 + gain e)``; the paper's gain is 0.1.

    Args:
        coefficient: the present one, b.
        kl: measured KL per answer, in nats.
        target: wanted KL per answer, in nats, > 0.
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coefficient * (1 + gain * error)


def token_rewards(
    scores: Tensor,
    ended: Tensor,
    kl: Tensor,
    mask: Tensor,
    *,
    kl_coefficient: float,
    missing_eos_penalty: float,
) -> Tensor:
    """Reward of each token, [episodes, tokens] (Ziegler et al. 2019, equation 2; N+, detail 23 on the penalty).

    Every token pays ``kl_coefficient * kl``. The last token, EOS where there is one, also receives the answer's score,
    less ``missing_eos_penalty`` when the answer did not end with EOS.

    Args:
        scores: preference score of each answer, [episodes].
        ended: True where the last token is EOS, bool [episodes].
        kl: per-token estimate, [episodes, tokens].
        mask: [episodes, tokens], at least one True in each row.
    """
    rewards = (-kl_coefficient * kl).masked_fill(~mask, 0.0)
    last = mask.sum(dim=1) - 1
    rows = torch.arange(mask.shape[0], device=mask.device)
    rewards[rows, last] += scores - missing_eos_penalty * (~ended).to(scores.dtype)
    return rewards


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


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale the valid tokens to mean 0 and variance 1 (N+, detail 25: population variance, 1e-8 added)."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    return ((values - mean) * torch.rsqrt(variance + 1e-8)).masked_fill(~mask, 0.0)


def truncated_importance_weights(
    logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    """Per-token correction for a sampler whose numbers differ from the trainer's.

    ``min(p_trainer / p_sampler, cap)``, both for the weights that sampled (Ionides 2008, "Truncated importance
    sampling", with a fixed cap). It multiplies the policy loss. Also gives the ratio before truncation.

    Args:
        logprobs: of the sampled tokens, recomputed by the trainer, [episodes, tokens].
        sampler_logprobs: of the same tokens, as the sampler reported them, [episodes, tokens].
        cap: >= 1.
    """
    ratio = (logprobs - sampler_logprobs).masked_fill(~mask, 0.0).exp().masked_fill(~mask, 0.0)
    return ratio.clamp(max=cap), ratio


class PolicyLoss(NamedTuple):
    """Terms of the policy loss, each [episodes, tokens]."""

    loss: Tensor
    ratio: Tensor
    # True where the clipped term was the larger one, so that the token gives no gradient.
    clipped: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio_clip: float,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate loss of each token (Schulman et al. 2017, equation 7, negated).

    ``max(-A r, -A clip(r, 1 - c, 1 + c))`` with ``r = exp(log p - log p_old)``, times the importance weight.

    Args:
        logprobs: under the policy that learns, with gradient, [episodes, tokens].
        old_logprobs: under the policy at the start of the step, [episodes, tokens].
        advantages: [episodes, tokens], without gradient.
        weights: importance weights, [episodes, tokens]; None = 1.
    """
    ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0).exp()
    unclipped = -advantages * ratio
    limited = -advantages * ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    loss = torch.maximum(unclipped, limited)
    if weights is not None:
        loss = loss * weights
    return PolicyLoss(
        loss.masked_fill(~mask, 0.0), ratio.detach().masked_fill(~mask, 0.0), (limited > unclipped) & mask
    )


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

    With them a critic explains no less of these returns than a constant does. A slope below 0 would turn the critic's
    order around and is held at 0; so is that of values that do not vary.
    """
    x, y = values[mask].double(), returns[mask].double()
    spread = (x - x.mean()).square().sum()
    slope = max(0.0, float(((x - x.mean()) * (y - y.mean())).sum() / spread)) if spread > 1e-12 else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """``1 - Var(R - V) / Var(R)`` over the valid tokens: 1 is a perfect critic, 0 one that knows only a constant.

    None when the returns do not vary.
    """
    valid_returns = returns[mask].double()
    spread = valid_returns.var(correction=0)
    if spread <= 1e-12:
        return None
    return float(1 - (valid_returns - values[mask].double()).var(correction=0) / spread)

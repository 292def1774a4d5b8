"""The formulas that the algorithms share, as pure functions. What only one of them uses stands in its own file.

Tensors of shape [episodes, tokens] hold one row per answer, right-padded; ``mask`` is True on the answer's tokens (EOS
included) and False on padding. Results are 0 on padding. Log-probs are in nats, at the sampling temperature.

Sources: Schulman et al. 2017 ("PPO", arXiv 1707.06347); Ziegler et al. 2019 ("Fine-Tuning Language Models from Human
Preferences", arXiv 1909.08593); Huang et al. 2024 ("The N+ Implementation Details of RLHF with PPO", arXiv 2403.17031),
here "N+"; Schulman 2020 ("Approximating KL divergence", joschu.net/blog); Zheng et al. 2023 ("Secrets of RLHF in Large
Language Models Part I: PPO", arXiv 2307.04964); Ye et al. 2020 ("Mastering Complex Control in MOBA Games with Deep
Reinforcement Learning", arXiv 1912.09729).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Largest log of a probability ratio, in nats. Of a whole answer it can be hundreds, and float32 overflows; verl has the
# same bound.
MOST_LOG_RATIO = 20.0


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens of the whole batch; both [episodes, tokens] -> scalar."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``log p - log p_ref`` of each sampled token: unbiased for KL(p, p_ref), may be negative (Schulman 2020, k1)."""
    return (logprobs - reference_logprobs).masked_fill(~mask, 0.0)


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``r - 1 - log r`` with ``r = p_ref / p``: unbiased and never negative (Schulman 2020, k3); r <= e^20."""
    log_ratio = (reference_logprobs - logprobs).masked_fill(~mask, 0.0).clamp(max=MOST_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``p / p_old``, from e^-20 to e^20; 1 on padding. Log-probs of tokens, or of whole answers."""
    return (logprobs - old_logprobs).masked_fill(~mask, 0.0).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()


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


class Moments(NamedTuple):
    """How many numbers were seen, their mean, and the sum of their squared distances from it."""

    seen: int = 0
    mean: float = 0.0
    squares: float = 0.0


def add_moments(moments: Moments, values: Tensor) -> Moments:
    """Moments of what was seen before together with ``values``, [any] (Chan et al. 1979, pairwise update)."""
    new = values.double()
    count, mean = new.numel(), float(new.mean())
    total, shift = moments.seen + count, mean - moments.mean
    squares = float((new - mean).square().sum())
    return Moments(
        total,
        moments.mean + shift * count / total,
        moments.squares + squares + shift**2 * moments.seen * count / total,
    )


def normalise_scores(scores: Tensor, moments: Moments) -> Tensor:
    """``(score - mean) / standard deviation`` of all scores so far, [episodes] (Zheng et al. 2023, section 5.3.1).

    Population variance, 1e-8 added. ``moments`` hold ``scores`` already.
    """
    deviation = math.sqrt(moments.squares / moments.seen + 1e-8)
    return ((scores.double() - moments.mean) / deviation).to(scores.dtype)


def answer_scores(scores: Tensor, ended: Tensor, *, clip: float | None, missing_eos_penalty: float) -> Tensor:
    """What each answer earns as a whole, [episodes]: its score, clipped (Zheng et al. 2023), less the penalty.

    Args:
        scores: [episodes].
        ended: True where the last token is EOS, bool [episodes].
        clip: bound of the score's size; None = none.
        missing_eos_penalty: subtracted where the answer was cut off (N+, detail 23, which sets instead of subtracting).
    """
    bounded = scores if clip is None else scores.clamp(-clip, clip)
    return bounded - missing_eos_penalty * (~ended).to(scores.dtype)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coefficient: float) -> Tensor:
    """Reward of each token, [episodes, tokens] (Ziegler et al. 2019, equation 2).

    Every token pays ``kl_coefficient * kl``; the last one, EOS where there is one, also receives the answer's score.

    Args:
        scores: what each answer earns, [episodes].
        kl: per-token estimate, [episodes, tokens].
        mask: [episodes, tokens], at least one True in each row.
    """
    rewards = (-kl_coefficient * kl).masked_fill(~mask, 0.0)
    last = mask.sum(dim=1) - 1
    rewards[torch.arange(mask.shape[0], device=mask.device), last] += scores
    return rewards


def sum_in_groups(values: Tensor, groups: Tensor) -> Tensor:
    """The sum over its group at the place of each value; both [episodes], ``groups`` int64 from 0."""
    sums = torch.zeros(int(groups.max()) + 1, dtype=values.dtype, device=values.device)
    return sums.index_add(0, groups, values)[groups]


def centred_in_groups(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Each value less the mean of its group, and the size of its group; each [episodes], ``groups`` as above."""
    sizes = sum_in_groups(torch.ones_like(values), groups)
    return values - sum_in_groups(values, groups) / sizes, sizes


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale the valid tokens to mean 0 and variance 1 (N+, detail 25: population variance, 1e-8 added)."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    return ((values - mean) * torch.rsqrt(variance + 1e-8)).masked_fill(~mask, 0.0)


def truncated_importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Per-token correction for a sampler whose numbers differ from the trainer's.

    ``min(p_trainer / p_sampler, cap)``, both for the weights that sampled (Ionides 2008, "Truncated importance
    sampling", with a fixed cap). It multiplies the policy loss.

    Args:
        logprobs: of the sampled tokens, recomputed by the trainer, [episodes, tokens].
        sampler_logprobs: of the same tokens, as the sampler reported them, [episodes, tokens].
        cap: >= 1.
    """
    return probability_ratio(logprobs, sampler_logprobs, mask).masked_fill(~mask, 0.0).clamp(max=cap)


class PolicyLoss(NamedTuple):
    """Terms of the policy loss, each [episodes, tokens]."""

    loss: Tensor
    ratio: Tensor
    # True where a clipped term holds, so that the token gives no gradient.
    clipped: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio_clip: float,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate loss of each token (Schulman et al. 2017, equation 7, negated).

    ``max(-A r, -A clip(r, 1 - c, 1 + c))`` with ``r = p / p_old``, times the importance weight. With a
    dual clip d, where A < 0 the loss is at most ``-A d`` (Ye et al. 2020, equation 5, negated): a token whose
    probability has risen far although it was bad does not outweigh all others.

    Args:
        logprobs: under the policy that learns, with gradient, [episodes, tokens]. A row may also be one whole answer.
        old_logprobs: under the policy at the start of the step, [episodes, tokens].
        advantages: [episodes, tokens], without gradient.
        dual_clip: > 1; None = none.
        weights: importance weights, [episodes, tokens]; None = 1.
    """
    ratio = probability_ratio(logprobs, old_logprobs, mask)
    unclipped = -advantages * ratio
    limited = -advantages * ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    loss = torch.maximum(unclipped, limited)
    clipped = limited > unclipped
    if dual_clip is not None:
        bound = -advantages * dual_clip
        beyond = (advantages < 0) & (bound < loss)
        loss = torch.where(beyond, bound, loss)
        clipped = clipped | beyond
    if weights is not None:
        loss = loss * weights
    return PolicyLoss(loss.masked_fill(~mask, 0.0), ratio.detach().masked_fill(~mask, 0.0), clipped & mask)


def pearson(x: Tensor, y: Tensor) -> float | None:
    """Pearson correlation of two [episodes] sequences, None when one of them does not vary."""
    if float(x.double().std(correction=0)) <= 1e-12 or float(y.double().std(correction=0)) <= 1e-12:
        return None
    return float(torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1])

"""The arithmetic of one PPO step: from scored episodes to updated models and the step's numbers."""

import torch
from torch import Tensor

from charter.worker import ppo
from charter.worker.batches import Episodes
from charter.worker.update import Learner, Prepared, Targets


def learn(learner: Learner, episodes: Episodes, step: int, kl_coefficient: float) -> tuple[dict[str, float], float]:
    """Update policy and critic from the episodes of a step.

    Args:
        learner: updated in place.
        episodes: sampled from the learner's present policy.
        step: of the run, from 0.
        kl_coefficient: of this step.

    Returns:
        The step's numbers by metric name, and the KL coefficient of the next step.
    """
    spec = learner.spec
    mask = episodes.mask
    old = learner.prepare(episodes)
    kl = ppo.kl_k1(old.logprobs, old.reference_logprobs, mask)
    rewards = ppo.token_rewards(
        episodes.scores,
        episodes.ended,
        kl,
        mask,
        kl_coefficient=kl_coefficient,
        missing_eos_penalty=spec.missing_eos_penalty,
    )
    if step == 0:
        old = _calibrate_critic(learner, old, rewards, mask)
    advantages, returns = ppo.generalised_advantages(
        rewards, old.values, mask, gamma=spec.gamma, gae_lambda=spec.gae_lambda
    )
    weights, importance_ratio = ppo.truncated_importance_weights(
        old.logprobs, episodes.sampler_logprobs, mask, spec.importance_ratio_cap
    )
    learner.set_learning_rates(step)
    numbers = learner.update(
        episodes,
        old,
        Targets(ppo.whiten(advantages, mask), returns, weights),
        train_actor=step >= spec.critic_warmup_steps,
    )

    kl_per_answer = kl.sum(dim=1).mean().item()
    mismatch = (old.logprobs - episodes.sampler_logprobs).abs()[mask]
    numbers |= {
        "score_mean": episodes.scores.mean().item(),
        "score_std": episodes.scores.std(correction=0).item(),
        "reward_mean": rewards.sum(dim=1).mean().item(),
        "kl_k1": kl_per_answer,
        "kl_k3": ppo.kl_k3(old.logprobs, old.reference_logprobs, mask).sum(dim=1).mean().item(),
        "kl_coefficient": kl_coefficient,
        "response_tokens_mean": mask.sum(dim=1).to(torch.float32).mean().item(),
        "eos_share": episodes.ended.to(torch.float32).mean().item(),
        "entropy": ppo.masked_mean(old.entropies, mask).item(),
        "importance_ratio_mean": ppo.masked_mean(importance_ratio, mask).item(),
        "logprob_mismatch_mean": mismatch.mean().item(),
        "logprob_mismatch_max": mismatch.max().item(),
    }
    explained = ppo.explained_variance(old.values, returns, mask)
    if explained is not None:
        numbers["explained_variance"] = explained
    if spec.HasField("kl_target"):
        kl_coefficient = ppo.adapt_kl_coefficient(kl_coefficient, kl_per_answer, spec.kl_target)
    return numbers, kl_coefficient


def _calibrate_critic(learner: Learner, old: Prepared, rewards: Tensor, mask: Tensor) -> Prepared:
    """Fit the critic's scale and level to the first step's undiscounted returns.

    The preference model is only read at EOS, so its values elsewhere can be off by more than the returns vary; a run of
    few steps would then follow the critic's noise.
    """
    _, returns = ppo.generalised_advantages(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)
    slope, intercept = ppo.fit_values(old.values, returns, mask)
    learner.critic.rescale(slope, intercept)
    return old._replace(values=(slope * old.values + intercept).masked_fill(~mask, 0.0))

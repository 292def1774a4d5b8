"""RLOO: REINFORCE with the answer as one action and the other answers to the prompt as its baseline.

Ahmadian et al. 2024 ("Back to Basics: Revisiting REINFORCE Style Optimization", arXiv 2402.14740), section 3.
"""

import torch
from torch import Tensor

from charter.worker.reinforcement import formulas
from charter.worker.reinforcement.algorithms.base import Algorithm, Experience, Rows, Targets, Terms
from charter.worker.training.models import ValueHead


class Rloo(Algorithm):
    """``-mean over answers of (R - mean of the others' R) p(y) / p_old(y)``, the ratio clipped as in PPO.

    At the first optimiser step the ratio is 1 and the gradient is the paper's; the clip bounds the steps after it.
    """

    def targets(self, experience: Experience, value_head: ValueHead | None) -> Targets:
        """``R = score - kl_coefficient log(p / p_ref)`` of the whole answer (section 2), less the others' mean."""
        mask = experience.mask
        rewards = formulas.token_rewards(
            experience.scores, experience.kl, mask, kl_coefficient=experience.kl_coefficient
        )
        advantages = leave_one_out_advantages(rewards.sum(dim=1), self.spec.samples_per_prompt)
        difference = (experience.old.logprobs - experience.episodes.sampler_logprobs).masked_fill(~mask, 0.0)
        weights = difference.sum(dim=1).exp().clamp(max=self.spec.importance_ratio_cap)
        return Targets(advantages.unsqueeze(1) * mask, weights.unsqueeze(1) * mask, rewards)

    def terms(self, rows: Rows) -> Terms:
        """The clipped surrogate of each answer, [rows, 1]."""
        logprobs, old_logprobs = (
            values.masked_fill(~rows.mask, 0.0).sum(dim=1, keepdim=True)
            for values in (rows.logprobs, rows.old_logprobs)
        )
        # An answer has at least one token, and its number stands at each of them.
        found = formulas.policy_loss(
            logprobs,
            old_logprobs,
            rows.advantages[:, :1],
            torch.ones_like(logprobs, dtype=torch.bool),
            ratio_clip=self.spec.ratio_clip,
            weights=rows.weights[:, :1],
        )
        return Terms(
            found.loss, {"ratio_mean": found.ratio.flatten(), "clip_fraction": found.clipped.flatten().to(found.ratio)}
        )

    def count(self, mask: Tensor) -> int:
        """The mean is over answers."""
        return len(mask)


def leave_one_out_advantages(rewards: Tensor, group: int) -> Tensor:
    """``R_i - mean of R_j, j != i``, within each group, [episodes] (Ahmadian et al. 2024, section 3.2).

    Args:
        rewards: [episodes], the answers to a prompt side by side.
        group: answers to a prompt, >= 2.
    """
    grouped = rewards.view(-1, group)
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()

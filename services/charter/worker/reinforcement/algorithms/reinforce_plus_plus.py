"""REINFORCE++: PPO's loss without a critic; the advantage of a token is its reward to go, normalised over the step.

Hu 2025 ("REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models", arXiv 2501.03262).
"""

import torch
from torch import Tensor

from charter.worker.reinforcement import formulas
from charter.worker.reinforcement.algorithms.base import Algorithm, Experience, Rows, Targets, Terms
from charter.worker.reinforcement.algorithms.clipped import clipped_terms, token_weights
from charter.worker.training.models import ValueHead


class ReinforcePlusPlus(Algorithm):
    """``A_t = score - kl_coefficient sum of the KL from token t on``, mean 0 and variance 1 over the step's tokens."""

    def targets(self, experience: Experience, value_head: ValueHead | None) -> Targets:
        """Rewards as PPO's; advantages without a baseline."""
        mask = experience.mask
        rewards = formulas.token_rewards(
            experience.scores, experience.kl, mask, kl_coefficient=experience.kl_coefficient
        )
        advantages = rewards_to_go(rewards, mask, gamma=self.spec.gamma)
        return Targets(formulas.whiten(advantages, mask), token_weights(experience, self.spec), rewards)

    def terms(self, rows: Rows) -> Terms:
        """The clipped surrogate of each token."""
        return clipped_terms(rows, self.spec)

    def count(self, mask: Tensor) -> int:
        """The mean is over tokens."""
        return int(mask.sum())


def rewards_to_go(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """``G_t = r_t + gamma G_{t+1}``, both [episodes, tokens]; behind an answer's last token it is 0."""
    to_go = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = torch.where(mask[:, t], rewards[:, t] + gamma * following, 0.0)
        to_go[:, t] = following
    return to_go

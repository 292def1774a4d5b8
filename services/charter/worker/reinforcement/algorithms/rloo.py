"""RLOO: REINFORCE with the answer as one action and the other answers to the prompt as its baseline.

Ahmadian et al. 2024 ("Back to Basics: Revisiting REINFORCE Style Optimization", arXiv 2402.14740), section 3.
"""

import torch
from torch import Tensor

from charter.worker.reinforcement import formulas
from charter.worker.reinforcement.algorithms.base import Algorithm, Experience, Rows, Targets, Terms
from charter.worker.reinforcement.algorithms.clipped import clipped_terms
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
        advantages = leave_one_out_advantages(rewards.sum(dim=1), experience.episodes.groups)
        logprobs, sampler_logprobs, whole = _whole_answers(
            experience.old.logprobs, experience.episodes.sampler_logprobs, mask
        )
        weights = formulas.truncated_importance_weights(
            logprobs, sampler_logprobs, whole, self.spec.importance_ratio_cap
        )
        return Targets(advantages.unsqueeze(1) * mask, weights * mask, rewards)

    def terms(self, rows: Rows) -> Terms:
        """The clipped surrogate of each answer, [rows, 1]."""
        logprobs, old_logprobs, whole = _whole_answers(rows.logprobs, rows.old_logprobs, rows.mask)
        # An answer has at least one token, and its number stands at each of them.
        answers = rows._replace(
            logprobs=logprobs,
            old_logprobs=old_logprobs,
            advantages=rows.advantages[:, :1],
            weights=rows.weights[:, :1],
            mask=whole,
        )
        return clipped_terms(answers, self.spec)

    def count(self, mask: Tensor) -> int:
        """The mean is over answers."""
        return len(mask)


def leave_one_out_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """``R_i - mean of R_j, j != i``, within each group (Ahmadian et al. 2024, section 3.2).

    It is ``(R_i - mean of the group) n / (n - 1)``. An answer whose group has no other has 0.

    Args:
        rewards: [episodes].
        groups: number of the prompt that each answers, int64 [episodes].

    Returns:
        [episodes].
    """
    centred, sizes = formulas.centred_in_groups(rewards, groups)
    return centred * sizes / (sizes - 1).clamp(min=1)


def _whole_answers(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probs of the answers as wholes, each [rows, 1], and a mask for them that is all True."""
    whole, other = (values.masked_fill(~mask, 0.0).sum(dim=1, keepdim=True) for values in (logprobs, other_logprobs))
    return whole, other, torch.ones_like(whole, dtype=torch.bool)

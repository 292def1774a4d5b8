"""GRPO: no critic; an answer's advantage is its score relative to the other answers to its prompt.

Shao et al. 2024 ("DeepSeekMath", arXiv 2402.03300), section 4.1: advantages of outcome supervision, loss of equation 3
with the KL estimate of equation 4 (k3).
"""

from torch import Tensor

from charter.worker.reinforcement import formulas
from charter.worker.reinforcement.algorithms.base import Algorithm, Experience, Rows, Targets, Terms
from charter.worker.reinforcement.algorithms.clipped import clipped_terms, token_weights
from charter.worker.training.models import ValueHead


class Grpo(Algorithm):
    """``mean over answers of mean over tokens of (-min(r A, clip(r) A) + kl_coefficient k3)``."""

    def targets(self, experience: Experience, value_head: ValueHead | None) -> Targets:
        """The answer's standing in its group, at each of its tokens. The KL is paid in the loss, not in the reward."""
        mask = experience.mask
        advantages = group_advantages(experience.scores, experience.episodes.groups)
        return Targets(
            advantages.unsqueeze(1) * mask,
            token_weights(experience, self.spec),
            formulas.token_rewards(experience.scores, experience.kl, mask, kl_coefficient=0.0),
            kl_coefficient=experience.kl_coefficient,
        )

    def terms(self, rows: Rows) -> Terms:
        """The clipped surrogate and the KL of each token, divided by the tokens of its answer."""
        found = clipped_terms(rows, self.spec)
        kl = formulas.kl_k3(rows.logprobs, rows.reference_logprobs, rows.mask)
        return found._replace(loss=(found.loss + rows.kl_coefficient * kl) / rows.mask.sum(dim=1, keepdim=True))

    def count(self, mask: Tensor) -> int:
        """The mean is over answers."""
        return len(mask)


def group_advantages(scores: Tensor, groups: Tensor) -> Tensor:
    """``(r - mean) / (standard deviation + 1e-4)`` within each group (Shao et al. 2024, section 4.1.2).

    The deviation is the unbiased one. In a group of equal scores, or of one answer, every advantage is 0.

    Args:
        scores: [episodes].
        groups: number of the prompt that each answers, int64 [episodes].

    Returns:
        [episodes].
    """
    centred, sizes = formulas.centred_in_groups(scores, groups)
    squares = formulas.sum_in_groups(centred.square(), groups)
    return centred / ((squares / (sizes - 1).clamp(min=1)).sqrt() + 1e-4)

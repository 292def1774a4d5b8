"""Online DPO: two fresh answers to each prompt are compared by the judge, and the policy learns from the pair.

Guo et al. 2024 ("Direct Language Model Alignment from Online AI Feedback", arXiv 2402.04792), with the loss of Rafailov
et al. 2023 ("Direct Preference Optimization", arXiv 2305.18290), equation 7, on soft labels: the cross-entropy of the
judge's P(A is better) and the policy's, sigmoid(margin).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from charter.outcomes import side
from charter.worker.reinforcement.algorithms.base import Algorithm, Experience, Rows, Targets, Terms
from charter.worker.training.models import ValueHead


class OnlineDpo(Algorithm):
    """The score of an answer is P(it is the better one of its pair); ``dpo_beta`` is the pull to the reference."""

    episodes_together = 2

    def targets(self, experience: Experience, value_head: ValueHead | None) -> Targets:
        """The soft labels. Nothing is weighted: the loss holds for pairs from any policy."""
        mask = experience.mask
        labels = experience.episodes.scores.unsqueeze(1) * mask
        return Targets(labels, mask.to(labels), are_advantages=False)

    def score_numbers(self, scores: Tensor) -> dict[str, float]:
        """The scores of a pair add to 1, so that their mean says nothing: how sure the judge is does."""
        return {"judge_certainty": torch.maximum(scores, 1 - scores).mean().item()}

    def terms(self, rows: Rows) -> Terms:
        """The loss of each pair, [rows / 2]; even rows are A, odd ones B."""
        log_ratios = (rows.logprobs - rows.reference_logprobs).masked_fill(~rows.mask, 0.0).sum(dim=1)
        labels = rows.advantages[::2, 0]
        margins = self.spec.dpo_beta * (log_ratios[::2] - log_ratios[1::2])
        preferred = side(labels)
        decided = preferred != 0
        right = (margins > 0) == (preferred > 0)
        return Terms(
            dpo_loss(margins, labels),
            {"dpo_margin": _towards_better(margins.detach(), labels), "dpo_accuracy": right[decided].to(margins)},
        )

    def count(self, mask: Tensor) -> int:
        """The mean is over pairs."""
        return len(mask) // 2


def dpo_loss(margins: Tensor, labels: Tensor) -> Tensor:
    """``-p log sigmoid(m) - (1 - p) log sigmoid(-m)`` in nats; margins, labels P(A is better) -> loss, all [pairs]."""
    return -labels * logsigmoid(margins) - (1 - labels) * logsigmoid(-margins)


def _towards_better(margins: Tensor, labels: Tensor) -> Tensor:
    """Margin of the answer that the label prefers; 0 for a tie, [pairs]."""
    towards: Tensor = margins * side(labels)
    return towards

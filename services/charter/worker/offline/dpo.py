"""DPO: the better answer of a stored pair gains on the worse one, as far as a pull to the starting model allows.

Rafailov et al. 2023 ("Direct Preference Optimization", arXiv 2305.18290), equation 7, with soft labels as online DPO.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from charter.outcomes import side, win
from charter.worker.offline.items import ComparedAnswers
from charter.worker.reinforcement.algorithms.online_dpo import dpo_loss
from charter.worker.supervised.learner import BACKWARD_TOKENS, Learner, Measured
from charter.worker.training import ranks


@dataclass
class DpoLearner(Learner[ComparedAnswers]):
    """Learns comparisons: the loss is the mean over those of the batch, on all ranks."""

    beta: float = field(kw_only=True)

    def _add_gradients(self, batch: Sequence[ComparedAnswers]) -> dict[str, float]:
        totals: dict[str, Tensor] = {}
        for rows, counts, micro_batch in self.micro_batches([one.sequences for one in batch], BACKWARD_TOKENS):
            pairs = [batch[row] for row in rows]
            sums = self.sums(micro_batch, [one for pair in pairs for one in pair.sequences])
            rewards = implicit_rewards(sums.view(-1, 2), _references(pairs).to(sums.device), self.beta)
            labels = _labels(pairs).to(sums.device)
            losses = dpo_loss(rewards[:, 0] - rewards[:, 1], labels)
            torch.autograd.backward(losses.sum() / len(batch) * counts)
            numbers = {"train_loss": losses.detach()} | figures(rewards.detach(), labels)
            for name, values in numbers.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.double)) + values.sum().cpu() * counts
        return {name: (ranks.total(sum_) / len(batch)).item() for name, sum_ in totals.items()}

    def _measure(self, items: Sequence[ComparedAnswers]) -> list[Measured]:
        found = self.summed_logprobs([one for pair in items for one in pair.sequences])
        sums = torch.tensor(found, dtype=torch.double).view(-1, 2)
        rewards, labels = implicit_rewards(sums, _references(items), self.beta), _labels(items)
        losses = dpo_loss(rewards[:, 0] - rewards[:, 1], labels).tolist()
        of_items = figures(rewards, labels) | {"ranking_accuracy": _right(sums[:, 0] - sums[:, 1], labels)}
        rows = zip(*(values.tolist() for values in of_items.values()), strict=True)
        return [Measured(loss, dict(zip(of_items, row, strict=True))) for loss, row in zip(losses, rows, strict=True)]


def implicit_rewards(logprobs: Tensor, reference_logprobs: Tensor, beta: float) -> Tensor:
    """``beta log(p(answer) / p_ref(answer))`` (section 4 of the paper, less a term of the prompt alone), any shape.

    Both are log-probs of whole answers, in nats.
    """
    return beta * (logprobs - reference_logprobs)


def figures(rewards: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What is reported of pairs, by name, each [pairs]: of rewards of A and B [pairs, 2], and P(A is better)."""
    prefers_a = side(labels) > 0
    chosen = torch.where(prefers_a, rewards[:, 0], rewards[:, 1])
    rejected = torch.where(prefers_a, rewards[:, 1], rewards[:, 0])
    return {
        "reward_accuracy": _right(rewards[:, 0] - rewards[:, 1], labels),
        "reward_margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
    }


def _right(leads: Tensor, labels: Tensor) -> Tensor:
    """1 where the lead of A over B is on the label's side, 0.5 where there is none, else 0; [pairs]."""
    right: Tensor = win(torch.sigmoid(leads * side(labels)))
    return right


def _references(pairs: Sequence[ComparedAnswers]) -> Tensor:
    return torch.tensor([pair.reference for pair in pairs], dtype=torch.double)


def _labels(pairs: Sequence[ComparedAnswers]) -> Tensor:
    return torch.tensor([pair.probability_a for pair in pairs], dtype=torch.double)

"""KTO: an answer that somebody found good gains, a bad one loses, each measured against how far the policy has moved.

Ethayarajh et al. 2024 ("KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306), section 4.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from charter.outcomes import win
from charter.worker.offline.items import RatedAnswer
from charter.worker.supervised.learner import BACKWARD_TOKENS, Learner, Measured
from charter.worker.training import ranks


@dataclass
class KtoLearner(Learner[RatedAnswer]):
    """Learns rated answers: the loss is the mean over those of the batch, on all ranks.

    ``desirable_weight`` is lambda_D, ``undesirable_weight`` lambda_U.
    """

    beta: float = field(kw_only=True)
    desirable_weight: float = field(kw_only=True)
    undesirable_weight: float = field(kw_only=True)

    def _add_gradients(self, batch: Sequence[RatedAnswer]) -> dict[str, float]:
        logprobs = self.summed_logprobs([one.sequences[1] for one in batch])
        kl = reference_point([found - one.reference[1] for found, one in zip(logprobs, batch, strict=True)])
        losses_sum = torch.zeros((), dtype=torch.double)
        # Of good answers, then of bad ones.
        rewards_sums = torch.zeros(2, dtype=torch.double)
        for rows, counts, micro_batch in self.micro_batches([one.sequences[:1] for one in batch], BACKWARD_TOKENS):
            answers = [batch[row] for row in rows]
            sums = self.sums(micro_batch, [one.sequences[0] for one in answers])
            log_ratios = sums - _references(answers, 0).to(sums.device)
            good = _good(answers).to(sums.device)
            losses = self._losses(log_ratios, good, kl)
            torch.autograd.backward(losses.sum() / len(batch) * counts)
            losses_sum += losses.detach().sum().cpu() * counts
            rewards = self.beta * log_ratios.detach()
            rewards_sums += torch.stack([rewards[good].sum(), rewards[~good].sum()]).cpu() * counts
        numbers = {"train_loss": (ranks.total(losses_sum) / len(batch)).item(), "kl": kl}
        desirable = sum(one.good for one in batch)
        names = {"reward_desirable": desirable, "reward_undesirable": len(batch) - desirable}
        means = zip(names.items(), ranks.total(rewards_sums).tolist(), strict=True)
        return numbers | {name: total / count for (name, count), total in means if count}

    def _measure(self, items: Sequence[RatedAnswer]) -> list[Measured]:
        # In one pass, as the reference was asked for: before the first step all ratios are 0 to the last bit.
        found = self.summed_logprobs([sequence for one in items for sequence in one.sequences])
        log_ratios = torch.tensor(found[::2], dtype=torch.double) - _references(items, 0)
        mismatched = (torch.tensor(found[1::2], dtype=torch.double) - _references(items, 1)).tolist()
        kl = reference_point(mismatched)
        good = _good(items)
        losses = self._losses(log_ratios, good, kl).tolist()
        leads = self.beta * (log_ratios - kl)
        right = win(torch.sigmoid(torch.where(good, leads, -leads))).tolist()
        rewards = (self.beta * log_ratios).tolist()
        return [
            Measured(
                losses[at],
                {
                    "reward_accuracy": right[at],
                    "reward_desirable" if one.good else "reward_undesirable": rewards[at],
                    "kl": mismatched[at],
                },
            )
            for at, one in enumerate(items)
        ]

    def _losses(self, log_ratios: Tensor, good: Tensor, kl: float) -> Tensor:
        return kto_loss(
            log_ratios,
            good,
            kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )


def reference_point(mismatched_log_ratios: Sequence[float]) -> float:
    """z_0, the estimate of KL(p, p_ref): ``max(0, mean log(p(y') / p_ref(y')))`` of answers to other prompts, in nats.

    Section 4.1 of the paper, "KL estimate". No gradient goes through it.
    """
    return max(0.0, sum(mismatched_log_ratios) / len(mismatched_log_ratios))


def kto_loss(
    log_ratios: Tensor, good: Tensor, kl: float, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """``lambda_y - v(x, y)`` of each answer, [answers] (equation 8 of the paper).

    ``v = lambda_D sigmoid(beta (r - z_0))`` of a good answer, ``lambda_U sigmoid(beta (z_0 - r))`` of a bad one.

    Args:
        log_ratios: r, ``log(p / p_ref)`` of each whole answer, in nats, [answers].
        good: whether it was found good, bool [answers].
        kl: z_0, in nats.
        beta: > 0.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
    """
    leads = torch.where(good, log_ratios - kl, kl - log_ratios)
    weights = torch.where(good, log_ratios.new_tensor(desirable_weight), log_ratios.new_tensor(undesirable_weight))
    return weights * (1 - torch.sigmoid(beta * leads))


def _references(items: Sequence[RatedAnswer], place: int) -> Tensor:
    return torch.tensor([one.reference[place] for one in items], dtype=torch.double)


def _good(items: Sequence[RatedAnswer]) -> Tensor:
    return torch.tensor([one.good for one in items])

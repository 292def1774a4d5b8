"""One PPO step on the trainer's side: old log-probs, reference, values; then the optimiser steps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from charter.v1 import run_pb2
from charter.worker import ppo
from charter.worker.batches import Episodes, by_tokens, collate, scatter
from charter.worker.errors import RunError
from charter.worker.models import Critic, LanguageModel

# Tokens of a micro-batch. With gradients, each costs about 1.2 MB of activations in a model of 135M parameters.
FORWARD_TOKENS = 2048
BACKWARD_TOKENS = 768


class Prepared(NamedTuple):
    """What the models say about the episodes before they learn from them; each [episodes, longest answer]."""

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropies: Tensor


class Targets(NamedTuple):
    """What the optimiser steps aim at; each [episodes, longest answer]."""

    advantages: Tensor
    returns: Tensor
    importance_weights: Tensor


@dataclass
class Learner:
    """Policy, reference and critic with the optimizers of the two that learn."""

    spec: run_pb2.PpoSpec
    temperature: float
    actor: LanguageModel
    reference: LanguageModel
    critic: Critic
    device: torch.device

    def __post_init__(self) -> None:
        """Make the optimizers. Adam's epsilon is 1e-5 (N+, arXiv 2403.17031); no weight decay."""
        self.reference.requires_grad_(False)
        self.actor_optimizer = self._adam(self.actor, self.spec.learning_rate)
        self.critic_optimizer = self._adam(self.critic, self.spec.critic_learning_rate)

    @torch.no_grad()
    def prepare(self, episodes: Episodes) -> Prepared:
        """Log-probs under policy and reference, values and entropies of the present weights, on the CPU."""
        mask = episodes.mask
        prepared = Prepared(*(torch.zeros(mask.shape) for _ in range(4)))
        for rows in by_tokens(episodes.lengths, FORWARD_TOKENS):
            batch = collate(episodes, rows, self.device)
            logprobs, entropies = self.actor.logprobs_and_entropies(batch, self.temperature)
            flat = (logprobs, self.reference.logprobs(batch, self.temperature), self.critic.values(batch), entropies)
            for target, values in zip(prepared, flat, strict=True):
                target[rows] = scatter(values.cpu(), mask[rows])
        return prepared

    def set_learning_rates(self, step: int) -> None:
        """Linear decay to 0 over the run's steps; ``step`` counts from 0 (N+, PPO's schedule)."""
        share = 1 - step / self.spec.steps
        for optimizer, rate in (
            (self.actor_optimizer, self.spec.learning_rate),
            (self.critic_optimizer, self.spec.critic_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def update(
        self, episodes: Episodes, prepared: Prepared, targets: Targets, *, train_actor: bool
    ) -> dict[str, float]:
        """Learn from the episodes: ``epochs`` passes of ``minibatches`` optimiser steps each.

        Returns means over the optimiser steps by metric name. Raises ``RunError`` when a gradient is not finite.
        """
        collected: dict[str, list[float]] = {}
        for _ in range(self.spec.epochs):
            order = torch.randperm(len(episodes.prompts))
            for minibatch in order.tensor_split(self.spec.minibatches):
                rows = minibatch.tolist()
                # One after the other, so that the gradients of only one are held.
                measured = self._actor_step(episodes, prepared, targets, rows) if train_actor else {}
                measured |= self._critic_step(episodes, prepared, targets, rows)
                for name, value in measured.items():
                    collected.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in collected.items()}

    def _actor_step(
        self, episodes: Episodes, prepared: Prepared, targets: Targets, minibatch: list[int]
    ) -> dict[str, float]:
        mask = episodes.mask
        tokens = int(mask[minibatch].sum())
        sums = {"policy_loss": 0.0, "clip_fraction": 0.0, "ratio_mean": 0.0}
        for rows in self._micro_batches(episodes, minibatch):
            batch = collate(episodes, rows, self.device)
            valid = mask[rows].to(self.device)
            terms = ppo.policy_loss(
                scatter(self.actor.logprobs(batch, self.temperature), valid),
                prepared.logprobs[rows].to(self.device),
                targets.advantages[rows].to(self.device),
                valid,
                ratio_clip=self.spec.ratio_clip,
                weights=targets.importance_weights[rows].to(self.device),
            )
            loss = terms.loss.sum() / tokens
            torch.autograd.backward(loss)
            sums["policy_loss"] += loss.item()
            sums["clip_fraction"] += terms.clipped.sum().item() / tokens
            sums["ratio_mean"] += terms.ratio.sum().item() / tokens
        norm = self._step(self.actor, self.actor_optimizer, "policy")
        return sums | {"policy_gradient_norm": norm}

    def _critic_step(
        self, episodes: Episodes, prepared: Prepared, targets: Targets, minibatch: list[int]
    ) -> dict[str, float]:
        mask = episodes.mask
        tokens = int(mask[minibatch].sum())
        sums = {"value_loss": 0.0, "value_clip_fraction": 0.0}
        for rows in self._micro_batches(episodes, minibatch):
            batch = collate(episodes, rows, self.device)
            valid = mask[rows].to(self.device)
            terms = ppo.value_loss(
                scatter(self.critic.values(batch), valid),
                prepared.values[rows].to(self.device),
                targets.returns[rows].to(self.device),
                valid,
                value_clip=self.spec.value_clip,
            )
            loss = terms.loss.sum() / tokens
            torch.autograd.backward(self.spec.value_coefficient * loss)
            sums["value_loss"] += loss.item()
            sums["value_clip_fraction"] += terms.clipped.sum().item() / tokens
        self._step(self.critic, self.critic_optimizer, "critic")
        return sums

    def _micro_batches(self, episodes: Episodes, minibatch: list[int]) -> Iterable[list[int]]:
        lengths = episodes.lengths
        for group in by_tokens([lengths[row] for row in minibatch], BACKWARD_TOKENS):
            yield [minibatch[place] for place in group]

    def _step(self, module: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> float:
        norm = float(nn.utils.clip_grad_norm_(module.parameters(), self.spec.max_gradient_norm))
        if not norm < float("inf"):
            raise RunError(
                f"the {name}'s gradient is not finite ({norm}); nothing was updated. Lower ppo.learning_rate or "
                "ppo.critic_learning_rate and resume from the last checkpoint"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _adam(self, module: nn.Module, learning_rate: float) -> torch.optim.AdamW:
        # Fused: without the temporary copies of every parameter.
        return torch.optim.AdamW(module.parameters(), lr=learning_rate, eps=1e-5, weight_decay=0.0, fused=True)

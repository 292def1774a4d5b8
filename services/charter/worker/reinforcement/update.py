"""One step on the trainer's side: old log-probs, reference, values; then the optimiser steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from charter.inference.local.cpu_memory import trim_freed_memory
from charter.v1 import run_pb2
from charter.worker.reinforcement.algorithms import ALGORITHMS
from charter.worker.reinforcement.algorithms.base import Prepared, Rows, Targets
from charter.worker.reinforcement.algorithms.ppo import value_loss
from charter.worker.training import ranks
from charter.worker.training.batches import Episodes, MicroBatch, collate, packs, scatter
from charter.worker.training.lora import lora_off
from charter.worker.training.models import Critic, LanguageModel, ValueHead, checkpoint_gradients
from charter.worker.training.packing import budget_on_ranks
from charter.worker.training.trainable import adam, move_moments, optimiser_step

# Tokens of a micro-batch. With gradients, each costs about 1.2 MB of activations in a model of 135M parameters.
FORWARD_TOKENS = 2048
BACKWARD_TOKENS = 768


@dataclass
class Learner:
    """Policy, reference and, where the algorithm needs one, critic, with the optimizers of the two that learn.

    The critic is a model of its own, or the policy's value head.
    """

    spec: run_pb2.PpoSpec
    temperature: float
    actor: LanguageModel
    # The starting policy; None with LoRA, whose adapters are switched off instead.
    reference: LanguageModel | None
    critic: Critic | None
    device: torch.device

    def __post_init__(self) -> None:
        """Make the optimizers."""
        if self.reference is not None:
            self.reference.requires_grad_(False)
        rates = {self.actor.model: self.spec.learning_rate}
        if self.actor.value_head is not None:
            rates[self.actor.value_head] = self.spec.critic_learning_rate
        self.actor_optimizer = adam(rates)
        self.critic_optimizer = adam({self.critic: self.spec.critic_learning_rate}) if self.critic else None
        for one in self._models:
            # Found out by each rank for itself; all must take the same way.
            one.longest_packed = min(ranks.collect(one.longest_packed))
        precision = torch.bfloat16 if self.spec.precision == "bfloat16" else torch.float32
        for one in self._models:
            one.precision = precision
        if self.spec.gradient_checkpointing:
            checkpoint_gradients(self.actor.model)
            if self.critic is not None:
                checkpoint_gradients(self.critic.backbone)
        self.algorithm = ALGORITHMS[self.spec.algorithm](self.spec)

    def learning(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """The policy and, where it is a model of its own, the critic, each with its optimizer."""
        learning: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {"actor": (self.actor, self.actor_optimizer)}
        if self.critic is not None and self.critic_optimizer is not None:
            learning["critic"] = (self.critic, self.critic_optimizer)
        return learning

    @property
    def _models(self) -> list[LanguageModel | Critic]:
        return [one for one in (self.actor, self.reference, self.critic) if one is not None]

    @property
    def value_head(self) -> ValueHead | None:
        """The critic's, wherever it is."""
        return self.critic.head if self.critic is not None else self.actor.value_head

    def to(self, device: torch.device) -> None:
        """Move the models and the optimizers' moments. Steps are done on the device of the constructor only."""
        for one in self._models:
            # Between CPU and GPU the parameters stay the objects that the optimizers know.
            one.to(device)
        for _, optimizer in self.learning().values():
            move_moments(optimizer, device)

    @torch.no_grad()
    def prepare(self, episodes: Episodes) -> Prepared:
        """Log-probs under policy and reference, values and entropies of the present weights, on the CPU."""
        mask = episodes.mask
        zeros = torch.zeros(3, *mask.shape)
        prepared = Prepared(zeros[0], zeros[1], zeros[2], torch.zeros(mask.shape) if self.value_head else None)
        for rows, counts in ranks.share(packs(episodes.lengths, self._budget(episodes, FORWARD_TOKENS))):
            batch = collate(episodes, rows, self.device)
            logprobs, entropies, values = self.actor.logprobs_entropies_and_values(batch, self.temperature)
            values = self.critic.values(batch) if self.critic else values
            flat = (logprobs, self._reference_logprobs(batch), entropies, values)
            for target, found in zip(prepared, flat, strict=True):
                if target is not None and found is not None and counts:
                    target[rows] = scatter(found.cpu(), mask[rows])
        for target in prepared:
            if target is not None:
                # Each rank has filled its own rows, and the others are 0.
                ranks.total(target)
        return prepared

    def _reference_logprobs(self, batch: MicroBatch) -> Tensor:
        if self.reference is not None:
            return self.reference.logprobs(batch, self.temperature)
        with lora_off(self.actor):
            return self.actor.logprobs(batch, self.temperature)

    def set_learning_rates(self, step: int) -> None:
        """Linear decay to 0 over the run's steps; ``step`` counts from 0 (N+, PPO's schedule)."""
        share = 1 - step / self.spec.steps
        for _, optimizer in self.learning().values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share

    def update(
        self, episodes: Episodes, prepared: Prepared, targets: Targets, *, train_actor: bool
    ) -> dict[str, float]:
        """Learn from the episodes: ``epochs`` passes of ``minibatches`` optimiser steps each.

        Returns means over the optimiser steps by metric name. Raises ``NotFiniteError`` when a gradient is not finite.
        """
        collected: dict[str, list[float]] = {}
        together = self.algorithm.episodes_together
        units = len(episodes.prompts) // together
        for _ in range(self.spec.epochs):
            order = torch.randperm(units)
            # Answers that were left out may have left fewer.
            for minibatch in order.tensor_split(min(self.spec.minibatches, units)):
                rows = [unit * together + place for unit in minibatch.tolist() for place in range(together)]
                # One after the other, so that the gradients of only one are held.
                measured = self._actor_step(episodes, prepared, targets, rows) if train_actor else {}
                if self.critic is not None and self.critic_optimizer is not None:
                    measured |= self._critic_step(self.critic, self.critic_optimizer, episodes, targets, rows)
                for name, value in measured.items():
                    collected.setdefault(name, []).append(value)
        # Of gradients and activations: what comes next, here and in other processes, needs memory too.
        trim_freed_memory()
        return {name: sum(values) / len(values) for name, values in collected.items()}

    def _actor_step(
        self, episodes: Episodes, prepared: Prepared, targets: Targets, minibatch: list[int]
    ) -> dict[str, float]:
        mask = episodes.mask
        tokens, count = int(mask[minibatch].sum()), self.algorithm.count(mask[minibatch])
        loss_sum = torch.zeros((), dtype=torch.double)
        # Sum and count of each number that is reported as its mean.
        reported: dict[str, Tensor] = {}
        value_sums = torch.zeros(2, dtype=torch.double)
        for rows, counts in self._micro_batches(episodes, minibatch, self.algorithm.episodes_together):
            batch = collate(episodes, rows, self.device)
            valid = mask[rows].to(self.device)
            # Of the entropies, and of the values where the critic is the policy's head.
            other = torch.zeros((), device=self.device)
            if self.spec.entropy_coefficient > 0:
                logprobs, entropies, values = self.actor.logprobs_entropies_and_values(batch, self.temperature)
                other = -self.spec.entropy_coefficient * entropies.sum() / tokens
            else:
                logprobs, values = self.actor.logprobs_and_values(batch, self.temperature)
            if values is not None:
                value = self._value_loss(values, targets, rows, valid, tokens)
                other = other + self.spec.value_coefficient * value.loss
                value_sums += value.numbers() * counts
            terms = self.algorithm.terms(
                Rows(
                    logprobs=scatter(logprobs, valid),
                    old_logprobs=prepared.logprobs[rows].to(self.device),
                    reference_logprobs=prepared.reference_logprobs[rows].to(self.device),
                    advantages=targets.advantages[rows].to(self.device),
                    weights=targets.weights[rows].to(self.device),
                    mask=valid,
                    kl_coefficient=targets.kl_coefficient,
                )
            )
            loss = terms.loss.sum() / count
            torch.autograd.backward((loss + other) * counts)
            loss_sum += loss.item() * counts
            for name, numbers in terms.numbers.items():
                found = torch.tensor([numbers.double().sum().item(), len(numbers)], dtype=torch.double)
                reported[name] = reported.get(name, 0.0) + found * counts
        norm = optimiser_step(
            self.actor,
            self.actor_optimizer,
            self.spec.max_gradient_norm,
            name="policy",
            rates="ppo.learning_rate",
        )
        means = {name: ranks.total(found).tolist() for name, found in sorted(reported.items())}
        return {
            "policy_loss": ranks.total(loss_sum).item(),
            "policy_gradient_norm": norm,
            **(_value_numbers(value_sums) if self.actor.value_head is not None else {}),
            **{name: values / among for name, (values, among) in means.items() if among},
        }

    def _critic_step(
        self,
        critic: Critic,
        optimizer: torch.optim.Optimizer,
        episodes: Episodes,
        targets: Targets,
        minibatch: list[int],
    ) -> dict[str, float]:
        mask = episodes.mask
        tokens = int(mask[minibatch].sum())
        sums = torch.zeros(2, dtype=torch.double)
        for rows, counts in self._micro_batches(episodes, minibatch, 1):
            batch = collate(episodes, rows, self.device)
            found = self._value_loss(critic.values(batch), targets, rows, mask[rows].to(self.device), tokens)
            torch.autograd.backward(self.spec.value_coefficient * found.loss * counts)
            sums += found.numbers() * counts
        limit = self.spec.max_gradient_norm
        optimiser_step(critic, optimizer, limit, name="critic", rates="ppo.critic_learning_rate")
        return _value_numbers(sums)

    def _value_loss(
        self, values: Tensor, targets: Targets, rows: Sequence[int], valid: Tensor, tokens: int
    ) -> "_ValueLoss":
        """Of the rows of a micro-batch, as parts of the mean over the ``tokens`` of a minibatch."""
        assert targets.values is not None
        assert targets.returns is not None
        terms = value_loss(
            scatter(values, valid),
            targets.values[rows].to(self.device),
            targets.returns[rows].to(self.device),
            valid,
            value_clip=self.spec.value_clip,
        )
        return _ValueLoss(terms.loss.sum() / tokens, terms.clipped.sum() / tokens)

    def _micro_batches(
        self, episodes: Episodes, minibatch: list[int], together: int
    ) -> Iterator[tuple[list[int], bool]]:
        """This rank's rows of ``minibatch`` by token budget, ``together`` neighbours never parted; as ``share``."""
        lengths = episodes.lengths
        units = [minibatch[start : start + together] for start in range(0, len(minibatch), together)]
        budget = self._budget(episodes, BACKWARD_TOKENS)
        budgeted = packs([sum(lengths[row] for row in unit) for unit in units], budget)
        for group, counts in ranks.share(budgeted):
            yield [row for place in group for row in units[place]], counts

    def _budget(self, episodes: Episodes, tokens: int) -> int:
        """As ``budget_on_ranks``."""
        return budget_on_ranks(self._models, max(episodes.lengths), tokens)


class _ValueLoss(NamedTuple):
    """Scalars: the loss, and the share of tokens whose value was clipped."""

    loss: Tensor
    clipped: Tensor

    def numbers(self) -> Tensor:
        return torch.tensor([self.loss.item(), self.clipped.item()], dtype=torch.double)


def _value_numbers(sums: Tensor) -> dict[str, float]:
    loss, clipped = ranks.total(sums).tolist()
    return {"value_loss": loss, "value_clip_fraction": clipped}

"""One step of learning from items: a loss over all of a batch, and an optimiser step; and the loss of tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from charter.worker.supervised.corpus import Item
from charter.worker.training import ranks
from charter.worker.training.batches import MicroBatch, TrainingSequence, pack_sequences, packs
from charter.worker.training.models import LanguageModel, checkpoint_gradients
from charter.worker.training.packing import budget_on_ranks
from charter.worker.training.trainable import adam, move_moments, optimiser_step

# Tokens of a micro-batch, or of its longest item where that has more.
FORWARD_TOKENS = 2048
BACKWARD_TOKENS = 768
# Figures that are shares: of 0 and 1.
SHARES = frozenset({"reward_accuracy", "ranking_accuracy"})
_MAX_GRADIENT_NORM = 1.0
_EPSILON = 1e-8

T = TypeVar("T", bound=Item)


class Measured(NamedTuple):
    """What a model says of a held-out item."""

    # Summed over the item's units.
    loss: float
    # By name, for those of which the mean over items is reported.
    figures: Mapping[str, float]


@dataclass
class Learner(ABC, Generic[T]):
    """A language model with its optimizer (AdamW without weight decay, epsilon 1e-8).

    ``section`` is that of the spec whose learning rate it has, for error messages. What it learns, a subclass says.
    """

    actor: LanguageModel
    device: torch.device
    section: str
    bfloat16: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Make the optimizer."""
        self.optimizer = adam({self.actor.model: 0.0}, _EPSILON)
        # Found out by each rank for itself; all must take the same way.
        self.actor.longest_packed = min(ranks.collect(self.actor.longest_packed))
        self.actor.precision = torch.bfloat16 if self.bfloat16 else torch.float32
        if self.gradient_checkpointing:
            checkpoint_gradients(self.actor.model)
        if isinstance(self.actor, FSDPModule):
            register_fsdp_forward_method(self.actor, "sample")

    def learning(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """The model with its optimizer."""
        return {"actor": (self.actor, self.optimizer)}

    def to(self, device: torch.device) -> None:
        """Move the model and the optimizer's moments. Steps are done on the device of the constructor only."""
        self.actor.to(device)
        move_moments(self.optimizer, device)

    def update(self, batch: Sequence[T], rate: float) -> dict[str, float]:
        """Learn from a batch at a learning rate; returns numbers by metric name.

        Raises ``RunError`` when the gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        numbers = self._add_gradients(batch)
        norm = optimiser_step(
            self.actor,
            self.optimizer,
            _MAX_GRADIENT_NORM,
            name="model",
            rates=f"{self.section}.learning_rate",
        )
        tokens = sum(item.targets for item in batch)
        return numbers | {"gradient_norm": norm, "learning_rate": rate, "target_tokens": tokens}

    @torch.no_grad()
    def measure(self, items: Sequence[T]) -> list[Measured]:
        """What the model says of each item."""
        return self._measure(items)

    def sample(self, prompt: Sequence[int], count: int, temperature: float, seed: int) -> list[int]:
        """``count`` tokens that the model writes behind a prompt, whatever it ends with on the way."""
        return self.actor.sample(prompt, count, temperature, seed)

    @torch.no_grad()
    def summed_logprobs(self, sequences: Sequence[TrainingSequence]) -> list[float]:
        """Of each sequence the log-prob of all its targets together, in nats."""
        nats = torch.zeros(len(sequences), dtype=torch.double)
        for rows, counts, micro_batch in self.micro_batches([[one] for one in sequences], FORWARD_TOKENS):
            sums = self.sums(micro_batch, [sequences[row] for row in rows])
            if counts:
                nats[rows] = sums.cpu()
        found: list[float] = ranks.total(nats).tolist()
        return found

    def sums(self, micro_batch: MicroBatch, sequences: Sequence[TrainingSequence]) -> Tensor:
        """The log-prob of all targets of each of its sequences, in nats, double [sequences]."""
        logprobs = self.actor.logprobs(micro_batch, 1.0).double()
        return torch.stack([part.sum() for part in torch.split(logprobs, [len(one.targets) for one in sequences])])

    def micro_batches(
        self, groups: Sequence[Sequence[TrainingSequence]], tokens: int
    ) -> Iterator[tuple[list[int], bool, MicroBatch]]:
        """This rank's groups by token budget, whether they count (``ranks.share``), and what the model reads of them.

        The sequences of a group stay together.
        """
        lengths = [sum(len(one.ids) for one in group) for group in groups]
        longest = max(len(one.ids) for group in groups for one in group)
        budget = budget_on_ranks([self.actor], longest, max(tokens, *lengths))
        for rows, counts in ranks.share(packs(lengths, budget)):
            yield rows, counts, pack_sequences([one for row in rows for one in groups[row]], self.device)

    @abstractmethod
    def _add_gradients(self, batch: Sequence[T]) -> dict[str, float]:
        """Add the gradients of the batch's loss, and say its numbers; every rank adds those of its part."""

    @abstractmethod
    def _measure(self, items: Sequence[T]) -> list[Measured]:
        """As ``measure``."""


class TokenLearner(Learner[Item]):
    """Learns tokens: the loss is the sum over the targets of the batch on all ranks, divided by their number.

    Not a mean of the means of micro-batches, in which the tokens of short answers would count for more.
    """

    def _add_gradients(self, batch: Sequence[Item]) -> dict[str, float]:
        sequences = [one for item in batch for one in item.sequences]
        tokens = sum(item.targets for item in batch)
        loss_sum = torch.zeros((), dtype=torch.double)
        for _, counts, micro_batch in self.micro_batches([[one] for one in sequences], BACKWARD_TOKENS):
            loss = -self.actor.logprobs(micro_batch, 1.0).sum() / tokens
            torch.autograd.backward(loss * counts)
            loss_sum += loss.item() * counts
        return {"train_loss": ranks.total(loss_sum).item()}

    def _measure(self, items: Sequence[Item]) -> list[Measured]:
        nats = iter(self.summed_logprobs([one for item in items for one in item.sequences]))
        return [Measured(-sum(next(nats) for _ in item.sequences), {}) for item in items]

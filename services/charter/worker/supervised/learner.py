"""One step of learning from sequences: the mean log-loss of the targets, and an optimiser step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from charter.worker.training import ranks
from charter.worker.training.batches import MicroBatch, TrainingSequence, pack_sequences, packs
from charter.worker.training.models import LanguageModel, checkpoint_gradients
from charter.worker.training.packing import budget_on_ranks
from charter.worker.training.trainable import adam, move_moments, optimiser_step

# Tokens of a micro-batch, or of its longest sequence where that has more.
FORWARD_TOKENS = 2048
BACKWARD_TOKENS = 768
_MAX_GRADIENT_NORM = 1.0
_EPSILON = 1e-8


@dataclass
class Learner:
    """A language model with its optimizer (AdamW without weight decay, epsilon 1e-8).

    ``section`` is that of the spec whose learning rate it has, for error messages.
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

    def update(self, batch: Sequence[TrainingSequence], rate: float) -> dict[str, float]:
        """Learn from a batch at a learning rate.

        The loss is the sum over the targets of the batch on all ranks, divided by their number: not a mean of the means
        of micro-batches, in which the tokens of short answers would count for more. Returns numbers by metric name.
        Raises ``RunError`` when the gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tokens = _targets(batch)
        loss_sum = torch.zeros((), dtype=torch.double)
        for _, counts, micro_batch in self._micro_batches(batch, BACKWARD_TOKENS):
            loss = -self.actor.logprobs(micro_batch, 1.0).sum() / tokens
            torch.autograd.backward(loss * counts)
            loss_sum += loss.item() * counts
        norm = optimiser_step(
            self.actor,
            self.optimizer,
            _MAX_GRADIENT_NORM,
            name="model",
            rates=f"{self.section}.learning_rate",
        )
        return {
            "train_loss": ranks.total(loss_sum).item(),
            "gradient_norm": norm,
            "learning_rate": rate,
            "target_tokens": tokens,
        }

    @torch.no_grad()
    def measure(self, sequences: Sequence[TrainingSequence]) -> list[float]:
        """Of each sequence the log-loss of its targets, in nats, summed."""
        nats = torch.zeros(len(sequences), dtype=torch.double)
        for rows, counts, micro_batch in self._micro_batches(sequences, FORWARD_TOKENS):
            losses = -self.actor.logprobs(micro_batch, 1.0).double().cpu()
            if counts:
                parts = torch.split(losses, [len(sequences[row].targets) for row in rows])
                nats[rows] = torch.stack([part.sum() for part in parts])
        found: list[float] = ranks.total(nats).tolist()
        return found

    def sample(self, prompt: Sequence[int], count: int, temperature: float, seed: int) -> list[int]:
        """``count`` tokens that the model writes behind a prompt, whatever it ends with on the way."""
        return self.actor.sample(prompt, count, temperature, seed)

    def _micro_batches(
        self, sequences: Sequence[TrainingSequence], tokens: int
    ) -> Iterator[tuple[list[int], bool, MicroBatch]]:
        """This rank's rows by token budget, whether they count (``ranks.share``), and what the model reads of them."""
        lengths = [len(one.ids) for one in sequences]
        longest = max(lengths)
        budget = budget_on_ranks([self.actor], longest, max(tokens, longest))
        for rows, counts in ranks.share(packs(lengths, budget)):
            yield rows, counts, pack_sequences([sequences[row] for row in rows], self.device)


def _targets(sequences: Sequence[TrainingSequence]) -> int:
    return sum(len(one.targets) for one in sequences)

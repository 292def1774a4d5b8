"""Fits the preference model to soft labels: first the head alone, then everything."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from charter.inference.preference_model import PreferenceModel, pad_right, soft_label_loss
from charter.v1 import run_pb2
from charter.worker.batches import by_tokens
from charter.worker.errors import RunError
from charter.worker.probe import fit_probe

# Tokens of a micro-batch, both answers of its pairs and their padding counted.
_BACKWARD_TOKENS = 1024
_FORWARD_TOKENS = 4096
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled pair as the preference model reads it."""

    ids_a: tuple[int, ...]
    ids_b: tuple[int, ...]
    # Soft label P(A is better).
    probability_a: float
    # Names the prompt.
    group: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores of both answers of each pair, [pairs], with what they are worth against the labels."""

    scores_a: tuple[float, ...]
    scores_b: tuple[float, ...]
    # Cross-entropy against the soft labels, in nats, mean over pairs.
    loss: float
    # P(A is better) by the model, [pairs].
    probabilities: tuple[float, ...]


@torch.no_grad()
def probe(model: PreferenceModel, examples: Sequence[Example], device: torch.device) -> float:
    """Fit the head alone, in place; returns its cross-entropy on the examples, in nats."""
    features = torch.zeros(2, len(examples), model.head.in_features, dtype=torch.double)
    for rows, both in _batches(examples, _FORWARD_TOKENS, device):
        features[:, rows] = model.features(*both).view(2, len(rows), -1).double().cpu()
    differences = (features[0] - features[1]).numpy()
    labels = np.array([example.probability_a for example in examples])
    weights = torch.from_numpy(fit_probe(differences, labels, [example.group for example in examples]))
    model.head.weight.copy_(weights.unsqueeze(0))
    model.head.bias.zero_()
    return float(soft_label_loss(torch.from_numpy(differences) @ weights, torch.from_numpy(labels)))


def fit(
    model: PreferenceModel,
    examples: Sequence[Example],
    spec: run_pb2.PreferenceModelSpec,
    device: torch.device,
    after_step: Callable[[int, int, float], None],
) -> None:
    """Train in place: soft-label cross-entropy, AdamW with epsilon 1e-5, cosine decay to 0 (N+, arXiv 2403.17031).

    Args:
        model: with dropout off.
        examples: the training pairs, drawn in a new order in each epoch from torch's random state.
        after_step: called with steps done, all steps, and the batch's loss in nats; may raise to stop.

    Raises:
        RunError: a gradient is not finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, eps=1e-5, weight_decay=0.0, fused=True)
    total = spec.epochs * math.ceil(len(examples) / spec.batch_size)
    step = 0
    for _ in range(spec.epochs):
        for batch in torch.split(torch.randperm(len(examples)), spec.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
            loss = _accumulate(model, [examples[index] for index in batch.tolist()], device)
            norm = nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
            if not bool(norm.isfinite()):
                raise RunError(
                    f"the preference model's gradient is not finite in step {step + 1}: "
                    "lower preference_model.learning_rate"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            after_step(step, total, loss)


@torch.no_grad()
def measure(model: PreferenceModel, examples: Sequence[Example], device: torch.device) -> Measured:
    """Score pairs without learning from them."""
    scores = torch.zeros(2, len(examples))
    for rows, both in _score(model, examples, _FORWARD_TOKENS, device):
        scores[:, rows] = both.cpu()
    difference = scores[0] - scores[1]
    labels = torch.tensor([example.probability_a for example in examples])
    return Measured(
        scores_a=tuple(scores[0].tolist()),
        scores_b=tuple(scores[1].tolist()),
        loss=float(soft_label_loss(difference, labels)),
        probabilities=tuple(difference.double().sigmoid().tolist()),
    )


def _accumulate(model: PreferenceModel, batch: Sequence[Example], device: torch.device) -> float:
    """Add the gradient of the batch's mean loss; returns the loss."""
    total = 0.0
    for rows, both in _score(model, batch, _BACKWARD_TOKENS, device):
        labels = torch.tensor([batch[row].probability_a for row in rows], device=device)
        loss = soft_label_loss(both[0] - both[1], labels) * (len(rows) / len(batch))
        torch.autograd.backward(loss)
        total += loss.item()
    return total


def _score(
    model: PreferenceModel, examples: Sequence[Example], budget: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor]]:
    """Places of pairs, and the scores of A and B, [2, pairs]."""
    for rows, both in _batches(examples, budget, device):
        yield rows, model.scores(*both).view(2, len(rows))


def _batches(
    examples: Sequence[Example], budget: int, device: torch.device
) -> Iterator[tuple[list[int], tuple[Tensor, Tensor]]]:
    """Pairs of similar length together: their places, and token ids and mask of all A, then all B."""
    lengths = [2 * max(len(example.ids_a), len(example.ids_b)) for example in examples]
    for rows in by_tokens(lengths, budget):
        sequences = [examples[row].ids_a for row in rows] + [examples[row].ids_b for row in rows]
        input_ids, attention_mask = pad_right(sequences)
        yield rows, (input_ids.to(device), attention_mask.to(device))

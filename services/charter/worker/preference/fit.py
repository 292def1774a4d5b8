"""Fits the preference model to soft labels: first the head alone, then everything."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from charter.inference.local.prefix_tree import tree_tokens
from charter.inference.preference_model import PreferenceModel, soft_label_loss
from charter.v1 import run_pb2
from charter.worker.preference.probe import fit_probe
from charter.worker.training import ranks
from charter.worker.training.batches import packs
from charter.worker.training.trainable import adam, optimiser_step

# Tokens of a micro-batch: what the answers of a pair begin with, and the rest of both.
BACKWARD_TOKENS = 1024
_FORWARD_TOKENS = 4096
_MAX_GRADIENT_NORM = 1.0
# No smoothing, no margin.
_PLAIN = run_pb2.PreferenceModelSpec()


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled pair as the preference model reads it."""

    ids_a: tuple[int, ...]
    ids_b: tuple[int, ...]
    # Soft label P(A is better).
    probability_a: float
    # Names the prompt.
    group: str
    # Where the label comes from (AI, HUMAN, IMPORTED), and the dimension of the prompt.
    source: str = ""
    dimension: str = ""
    # How often the pair is drawn, relative to the others.
    weight: float = 1.0
    # The starting policy wrote the answers, as far as is known.
    starting: bool = True
    # What both begin with: the conversation, in tokens.
    prompt_tokens: int = 0
    # Log-odds of A by the lengths alone (``charter.worker.preference.length_bias``); the loss adds them to the model's.
    length_logit: float = 0.0

    @property
    def tokens_a(self) -> int:
        """Tokens of answer A, EOS included."""
        return len(self.ids_a) - self.prompt_tokens

    @property
    def tokens_b(self) -> int:
        """Tokens of answer B, EOS included."""
        return len(self.ids_b) - self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores of both answers of each pair, [pairs], with what they are worth against the labels."""

    scores_a: tuple[float, ...]
    scores_b: tuple[float, ...]
    # Cross-entropy of the scores against the soft labels, in nats, mean over pairs.
    loss: float
    # The same as it is trained: with label smoothing, margin and the lengths' log-odds.
    trained_loss: float
    # P(A is better) by the model, [pairs].
    probabilities: tuple[float, ...]


def bootstrap_weights(examples: Sequence[Example], members: int, seed: int) -> Tensor:
    """How often each member of an ensemble sees each pair, float32 [pairs, members]; ones for a single member.

    Poisson counts of mean 1 for each prompt and member: a bootstrap of the prompts (Oza and Russell 2001, "Online
    Bagging and Boosting").
    """
    if members == 1:
        return torch.ones(len(examples), 1)
    groups = {group: row for row, group in enumerate(sorted({example.group for example in examples}))}
    counts = np.random.default_rng(seed).poisson(1.0, size=(len(groups), members))
    return torch.tensor(counts[[groups[example.group] for example in examples]], dtype=torch.float32)


@torch.no_grad()
def differences(model: PreferenceModel, examples: Sequence[Example]) -> Tensor:
    """What a head reads of answer A less what it reads of B, on the CPU; float64 [pairs, width]."""
    width = model.head.in_features * len(model.backbones)
    features = torch.zeros(2, len(examples), width, dtype=torch.double)
    for rows, counts, both in _batches(model, examples, _FORWARD_TOKENS):
        found = model.features(both).view(2, len(rows), -1).double().cpu()
        if counts:
            features[:, rows] = found
    return ranks.total(features[0] - features[1])


@torch.no_grad()
def probe(model: PreferenceModel, examples: Sequence[Example], counted: Tensor, smoothing: float) -> float:
    """Fit each member's head alone, in place; returns the cross-entropy of the mean score on the examples, in nats.

    ``counted`` is what ``bootstrap_weights`` gives.
    """
    found = differences(model, examples)
    labels = np.array([example.probability_a for example in examples])
    smoothed = labels * (1 - smoothing) + 0.5 * smoothing
    drawn = np.array([example.weight for example in examples])
    groups = [example.group for example in examples]
    lengths = np.array([example.length_logit for example in examples])
    mean_scores = torch.zeros(len(examples), dtype=torch.double)
    for member, counts in enumerate(counted.double().numpy().T):
        read = found[:, model.part(member)]
        # By one rank for all: others may round otherwise.
        solve = partial(fit_probe, read.numpy(), smoothed, groups, drawn * counts, lengths)
        weights = torch.from_numpy(ranks.from_rank_zero(solve))
        model.head.weight[member].copy_(weights)
        mean_scores += read @ weights / model.members
    model.head.bias.zero_()
    return float(soft_label_loss(mean_scores + torch.from_numpy(lengths), torch.from_numpy(labels)))


def fit(
    model: PreferenceModel,
    examples: Sequence[Example],
    counted: Tensor,
    spec: run_pb2.PreferenceModelSpec,
    device: torch.device,
    after_step: Callable[[int, int, float], bool],
) -> None:
    """Train in place: soft-label cross-entropy, AdamW with epsilon 1e-5, cosine decay to 0 (N+, arXiv 2403.17031).

    The loss is that of each member by itself: the mean over members on one backbone, the sum over those that have their
    own, so that each learns as if it were alone but for the gradient's norm, which is clipped over all. What does not
    require a gradient stays as it is.

    Args:
        model: with dropout off.
        examples: the training pairs. An epoch takes each once, in a new order from torch's random state; with unequal
            weights it draws as many with replacement, in proportion to their weights.
        counted: what ``bootstrap_weights`` gives.
        after_step: called with steps done, all steps, and the batch's loss in nats; True ends the fit. Says the same
            on every rank.

    Raises:
        NotFiniteError: a gradient is not finite.
    """
    optimizer = adam({model: spec.learning_rate})
    total = spec.epochs * math.ceil(len(examples) / spec.batch_size)
    step = 0
    for _ in range(spec.epochs):
        for batch in torch.split(_epoch(examples), spec.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
            loss = _accumulate(model, [examples[index] for index in batch.tolist()], counted[batch], spec, device)
            optimiser_step(
                model,
                optimizer,
                _MAX_GRADIENT_NORM,
                name="preference model",
                rates="preference_model.learning_rate",
            )
            step += 1
            if after_step(step, total, loss):
                return


@torch.no_grad()
def measure(
    model: PreferenceModel,
    examples: Sequence[Example],
    spec: run_pb2.PreferenceModelSpec = _PLAIN,
) -> Measured:
    """Score pairs without learning from them; ``spec`` says how the loss is trained."""
    scores = torch.zeros(2, len(examples))
    for rows, counts, both in _batches(model, examples, _FORWARD_TOKENS):
        found = model.scores(both).view(2, len(rows)).cpu()
        if counts:
            scores[:, rows] = found
    ranks.total(scores)
    difference = scores[0] - scores[1]
    labels = torch.tensor([example.probability_a for example in examples])
    return Measured(
        scores_a=tuple(scores[0].tolist()),
        scores_b=tuple(scores[1].tolist()),
        loss=float(soft_label_loss(difference, labels)),
        trained_loss=float(_loss(difference, examples, spec)),
        probabilities=tuple(difference.double().sigmoid().tolist()),
    )


def _epoch(examples: Sequence[Example]) -> Tensor:
    """Places of the pairs of one epoch, in order; int64 [pairs]."""
    weights = torch.tensor([example.weight for example in examples], dtype=torch.double)
    if bool((weights == weights[0]).all()):
        return torch.randperm(len(examples))
    return torch.multinomial(weights, len(examples), replacement=True)


def _accumulate(
    model: PreferenceModel,
    batch: Sequence[Example],
    counted: Tensor,
    spec: run_pb2.PreferenceModelSpec,
    device: torch.device,
) -> float:
    """Add the gradient of the batch's mean loss; returns the loss."""
    total = torch.zeros((), dtype=torch.double)
    for rows, counts, both in _batches(model, batch, BACKWARD_TOKENS):
        scores = model.member_scores(both).view(2, len(rows), model.members)
        loss = _loss(scores[0] - scores[1], [batch[row] for row in rows], spec, counted[rows].to(device))
        loss = loss * (counts * len(rows) / len(batch))
        torch.autograd.backward(loss * model.members if model.separate else loss)
        total += loss.item()
    return ranks.total(total).item()


def _loss(
    difference: Tensor, examples: Sequence[Example], spec: run_pb2.PreferenceModelSpec, counted: Tensor | None = None
) -> Tensor:
    """The loss that is trained, mean over pairs: differences of scores [pairs] or [pairs, members] -> []."""
    shape = (-1, *[1] * (difference.dim() - 1))
    labels = difference.new_tensor([example.probability_a for example in examples]).view(shape)
    lengths = difference.new_tensor([example.length_logit for example in examples]).view(shape)
    smoothed = labels * (1 - spec.label_smoothing) + 0.5 * spec.label_smoothing
    # A label of 0.5 asks for no distance, a certain one for all of it.
    margin = spec.margin * (2 * labels - 1).abs()
    return soft_label_loss(difference + lengths, smoothed, margin, counted)


def _batches(
    model: PreferenceModel, examples: Sequence[Example], budget: int
) -> Iterator[tuple[list[int], bool, list[Sequence[int]]]]:
    """This rank's pairs by token budget: their places, whether they count (``ranks.share``), and token ids, A before B.

    All A come before all B. A pair's prompt counts once.
    """
    lengths = [tree_tokens([example.ids_a, example.ids_b]) for example in examples]
    longest = max(len(ids) for example in examples for ids in (example.ids_a, example.ids_b))
    if ranks.size() > 1 and longest > model.longest_in_row:
        # Sequences go through it one by one, and each rank must call it as often as the others: one pair at a time.
        model.longest_in_row, budget = 0, 0
    for rows, counts in ranks.share(packs(lengths, budget)):
        yield rows, counts, [*(examples[row].ids_a for row in rows), *(examples[row].ids_b for row in rows)]

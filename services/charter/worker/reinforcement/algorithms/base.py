"""What an algorithm decides: what the optimiser steps aim at, and the policy's loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from charter.v1 import run_pb2
from charter.worker.training.batches import Episodes
from charter.worker.training.models import ValueHead


class Prepared(NamedTuple):
    """What the models say about the episodes before they learn from them; each [episodes, longest answer]."""

    logprobs: Tensor
    reference_logprobs: Tensor
    entropies: Tensor
    # None without a critic.
    values: Tensor | None


@dataclass(frozen=True, slots=True)
class Experience:
    """The episodes of a step as an algorithm sees them."""

    episodes: Episodes
    old: Prepared
    # What each answer earns as a whole, [episodes]: its score, normalised, clipped and less the missing-EOS penalty.
    scores: Tensor
    # k1 estimate of the KL to the reference, [episodes, longest answer].
    kl: Tensor
    # True on answer tokens, bool [episodes, longest answer].
    mask: Tensor
    kl_coefficient: float
    # Of the run, from 0.
    step: int


class Targets(NamedTuple):
    """What the optimiser steps aim at; each [episodes, longest answer]."""

    # Of each token; an algorithm that weighs whole answers repeats its number over their tokens.
    advantages: Tensor
    # Importance weights of sampler and trainer.
    weights: Tensor
    # What each token earned, to report; None where nothing is earned.
    rewards: Tensor | None = None
    # The critic's, before it learns, and what it should have said; None without a critic.
    values: Tensor | None = None
    returns: Tensor | None = None
    # Of the KL in the loss; 0 where it is paid in the rewards.
    kl_coefficient: float = 0.0
    # Whether ``advantages`` are any: online DPO puts its labels there.
    are_advantages: bool = True


class Rows(NamedTuple):
    """A micro-batch of answers; each tensor [rows, tokens]. Only ``logprobs`` has a gradient."""

    logprobs: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    # Bool.
    mask: Tensor
    # Of the KL in the loss.
    kl_coefficient: float


class Terms(NamedTuple):
    """The policy's loss on a micro-batch."""

    # Their sum over the minibatch, divided by ``Algorithm.count``, is the loss. Any shape.
    loss: Tensor
    # Values whose mean over the minibatch is reported, by metric name, [any].
    numbers: dict[str, Tensor]


class Algorithm(ABC):
    """How a policy learns from scored answers. Holds no state: everything that lasts is in the learner's models."""

    # Whether it learns a critic.
    needs_critic: ClassVar[bool] = False
    # Neighbouring episodes that one term of the loss needs together.
    episodes_together: ClassVar[int] = 1

    def __init__(self, spec: run_pb2.PpoSpec) -> None:
        self.spec = spec

    @abstractmethod
    def targets(self, experience: Experience, value_head: ValueHead | None) -> Targets:
        """What to aim at. Of a prompt's ``spec.samples_per_prompt`` answers those without a score are not there."""

    def score_numbers(self, scores: Tensor) -> dict[str, float]:
        """What the scores of a step say, by metric name; ``scores`` as in ``Episodes``."""
        return {"score_mean": scores.mean().item(), "score_std": scores.std(correction=0).item()}

    @abstractmethod
    def terms(self, rows: Rows) -> Terms:
        """The loss on a micro-batch of whole answers."""

    @abstractmethod
    def count(self, mask: Tensor) -> int:
        """By what the sum of the terms of a minibatch is divided; ``mask`` is bool [episodes, tokens]."""

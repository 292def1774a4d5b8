"""Comparisons and rated answers as token ids, and learners of them on tiny models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from charter.worker.offline.dpo import DpoLearner
from charter.worker.offline.items import ComparedAnswers, LabelledItem, RatedAnswer
from charter.worker.offline.kto import KtoLearner
from charter.worker.supervised.learner import Learner
from charter.worker.training import ranks
from charter.worker.training.batches import TrainingSequence
from charter.worker.training.lora import add_lora
from charter.worker.training.models import LanguageModel

from tests.support.learners import CPU

T = TypeVar("T", bound=LabelledItem)
L = TypeVar("L", bound=Learner[Any])


def load(model: Path, make: Callable[..., L], lora_rank: int | None = None, **values: Any) -> L:
    def actor(device: torch.device) -> LanguageModel:
        loaded = LanguageModel.load(model, device)
        if lora_rank is not None:
            add_lora(loaded.model, lora_rank, seed=0)
        return loaded

    return make(ranks.load_sharded(actor, CPU), ranks.device(), "dpo", **values)


def dpo(model: Path, beta: float = 0.1, **values: Any) -> DpoLearner:
    return load(model, DpoLearner, beta=beta, **values)


def kto(model: Path, beta: float = 0.1, up: float = 1.0, down: float = 1.0, **values: Any) -> KtoLearner:
    return load(model, KtoLearner, beta=beta, desirable_weight=up, undesirable_weight=down, **values)


def with_reference(learner: Learner[Any], items: Sequence[T]) -> list[T]:
    """The items with what the learner says of them now."""
    found = iter(learner.summed_logprobs([one for item in items for one in item.sequences]))
    return [replace(item, reference=tuple(next(found) for _ in item.sequences)) for item in items]


def sequence(prompt: Sequence[int], answer: Sequence[int]) -> TrainingSequence:
    ids = [*prompt, *answer[:-1]]
    return TrainingSequence(ids, range(len(prompt) - 1, len(ids)), list(answer))


class Draw:
    """Random token ids."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def ids(self, least: int, most: int, low: int = 3, high: int = 200) -> list[int]:
        length = int(torch.randint(least, most, (), generator=self.generator))
        found: list[int] = torch.randint(low, high, (length,), generator=self.generator).tolist()
        return found

    def share(self) -> float:
        return float(torch.rand((), generator=self.generator))


def compared(seed: int = 0, count: int = 6) -> list[ComparedAnswers]:
    """Random pairs of unequal lengths with soft labels on either side; the first two of one prompt."""
    draw = Draw(seed)
    prompts = [draw.ids(2, 12) for _ in range(count)]
    prompts[1] = prompts[0]
    return [
        ComparedAnswers(
            (sequence(prompt, draw.ids(1, 9)), sequence(prompt, draw.ids(2, 14))),
            group=str(prompt),
            label_source="HUMAN",
            probability_a=(0.98, 0.3, 0.7, 0.0, 1.0)[place % 5],
        )
        for place, prompt in enumerate(prompts)
    ]


def rated(seed: int = 0, count: int = 6) -> list[RatedAnswer]:
    """Random answers, every third one bad, each with an answer to another prompt behind it."""
    draw = Draw(seed)
    prompts = [draw.ids(2, 12) for _ in range(count)]
    answers = [draw.ids(1, 12) for _ in range(count)]
    return [
        RatedAnswer(
            (sequence(prompt, answers[place]), sequence(prompt, answers[place - 1])),
            group=str(prompt),
            label_source="HUMAN",
            good=place % 3 > 0,
        )
        for place, prompt in enumerate(prompts)
    ]

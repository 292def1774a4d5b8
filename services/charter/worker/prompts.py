"""The prompts of a run: those that it trains on and those that it holds out, and the order in which they are taken."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from charter.data.bad_rows import BadRows
from charter.data.errors import DataError
from charter.data.prompts import TaskPrompt, read_prompts
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt
from charter.worker.errors import SpecError
from charter.worker.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Prompts to train on and prompts held out, and how many were left out for their length."""

    train: tuple[TaskPrompt, ...]
    held_out: tuple[TaskPrompt, ...]
    too_long: int


def load_prompt_sets(
    train: Iterable[str],
    held_out: Iterable[str],
    tokenizer: ChatTokenizer,
    max_prompt_tokens: int,
    bad: BadRows | None = None,
) -> PromptSets:
    """Read both sets and leave out repeated prompts and those of more than ``max_prompt_tokens`` tokens.

    Raises ``SpecError`` for bad rows where they stop, when a held-out prompt is also trained on, or when nothing is
    left of a set.
    """
    try:
        train_prompts = _unique(prompt for source in train for prompt in read_prompts(source, bad))
        held_prompts = _unique(prompt for source in held_out for prompt in read_prompts(source, bad))
    except DataError as error:
        raise SpecError(str(error)) from error
    if shared := train_prompts.keys() & held_prompts.keys():
        example = next(train_prompts[key] for key in train_prompts if key in shared)
        raise SpecError(
            f"{len(shared)} held-out prompts are also in prompts.train, for example {example.text[:80]!r}: "
            "remove them from one of the two"
        )
    fitting_train = [prompt for prompt in train_prompts.values() if _fits(prompt, tokenizer, max_prompt_tokens)]
    fitting_held = [prompt for prompt in held_prompts.values() if _fits(prompt, tokenizer, max_prompt_tokens)]
    for name, fitting in (("train", fitting_train), ("held_out", fitting_held)):
        if not fitting:
            raise SpecError(
                f"every prompt of prompts.{name} has more than max_prompt_tokens={max_prompt_tokens} tokens"
            )
    too_long = len(train_prompts) + len(held_prompts) - len(fitting_train) - len(fitting_held)
    return PromptSets(tuple(fitting_train), tuple(fitting_held), too_long)


def take(prompts: Sequence[TaskPrompt], cursor: int, count: int, seed: int) -> list[TaskPrompt]:
    """Prompts ``cursor`` to ``cursor + count`` of an endless stream: all prompts in a new order in every pass."""
    orders: dict[int, list[int]] = {}
    taken = []
    for position in range(cursor, cursor + count):
        turn, place = divmod(position, len(prompts))
        if turn not in orders:
            order = list(range(len(prompts)))
            random.Random(derive_seed(seed, "prompt order", turn)).shuffle(order)
            orders[turn] = order
        taken.append(prompts[orders[turn][place]])
    return taken


def _unique(prompts: Iterable[TaskPrompt]) -> dict[str, TaskPrompt]:
    unique: dict[str, TaskPrompt] = {}
    for prompt in prompts:
        unique.setdefault(prompt.key, prompt)
    return unique


def _fits(prompt: TaskPrompt, tokenizer: ChatTokenizer, limit: int) -> bool:
    try:
        return len(tokenizer.prompt_ids(Prompt(prompt.messages))) <= limit
    except ValueError as error:
        raise SpecError(f"prompt {prompt.text[:80]!r}: {error}") from error

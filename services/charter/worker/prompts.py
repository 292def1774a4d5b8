"""Prompt files: JSONL of ``{"prompt": text}`` or ``{"messages": [...]}`` with optional ``id`` and ``dimension``."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from charter.chat import ChatMessage, Role
from charter.held_out import prompt_key
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt
from charter.jsonl import RowError, read_records
from charter.worker.errors import SpecError
from charter.worker.seeds import derive_seed

_KEYS = {"prompt", "messages", "id", "dimension"}


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A conversation to answer. ``key`` is a digest of its content: the same prompt has the same key everywhere."""

    key: str
    messages: tuple[ChatMessage, ...]
    dimension: str

    @property
    def text(self) -> str:
        """The last message, to show."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Prompts to train on and prompts held out, and how many were left out for their length."""

    train: tuple[TaskPrompt, ...]
    held_out: tuple[TaskPrompt, ...]
    too_long: int


def read_prompts(path: Path) -> list[TaskPrompt]:
    """Read a prompt file. Raises ``SpecError`` that names each malformed line, or says that the file is empty."""
    try:
        prompts = read_records(path, _prompt_of)
    except RowError as error:
        raise SpecError(str(error)) from error
    except OSError as error:
        raise SpecError(f"cannot read the prompt file {path}: {error.strerror}") from error
    if not prompts:
        raise SpecError(f"{path} holds no prompts")
    return prompts


def load_prompt_sets(
    train: Iterable[str], held_out: Iterable[str], tokenizer: ChatTokenizer, max_prompt_tokens: int
) -> PromptSets:
    """Read both sets and leave out repeated prompts and those of more than ``max_prompt_tokens`` tokens.

    Raises ``SpecError`` when a held-out prompt is also trained on, or nothing is left of a set.
    """
    train_prompts = _unique(prompt for path in train for prompt in read_prompts(Path(path)))
    held_prompts = _unique(prompt for path in held_out for prompt in read_prompts(Path(path)))
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


def _prompt_of(record: dict[str, Any]) -> TaskPrompt:
    if unknown := sorted(set(record) - _KEYS):
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    if ("prompt" in record) == ("messages" in record):
        raise ValueError("needs either prompt or messages")
    turns = record["messages"] if "messages" in record else [{"role": "user", "content": record["prompt"]}]
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages must be a list with at least one turn")
    messages = tuple(_message_of(turn) for turn in turns)
    if messages[-1].role != "user":
        raise ValueError(f"the last message must be the user's, not the {messages[-1].role}'s")
    dimension = record.get("dimension", "")
    if not isinstance(dimension, str):
        raise ValueError("dimension must be text")
    return TaskPrompt(prompt_key(messages), messages, dimension)


def _message_of(turn: Any) -> ChatMessage:
    if not isinstance(turn, dict) or set(turn) != {"role", "content"} or turn["role"] not in get_args(Role):
        raise ValueError(f"a message needs role ({', '.join(get_args(Role))}) and content")
    if not isinstance(turn["content"], str) or not turn["content"].strip():
        raise ValueError("prompt and content must be text that is not empty")
    return ChatMessage(turn["role"], turn["content"])

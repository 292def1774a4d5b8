"""Prompt files: JSONL of ``{"prompt": text}`` or ``{"messages": [...]}`` with optional ``id`` and ``dimension``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from charter.chat import ChatMessage, Role
from charter.held_out import prompt_key
from charter.jsonl import RowError, read_records

_KEYS = {"prompt", "messages", "id", "dimension"}


class PromptFileError(ValueError):
    """A prompt file cannot be used; the message names it, and the line."""


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A conversation to answer. ``key`` is that of ``charter.held_out.prompt_key``."""

    key: str
    messages: tuple[ChatMessage, ...]
    dimension: str

    @property
    def text(self) -> str:
        """The last message, to show."""
        return self.messages[-1].content


def read_prompts(path: Path) -> list[TaskPrompt]:
    """Read a prompt file. Raises ``PromptFileError`` that names each malformed line, or says that the file is empty."""
    try:
        prompts = read_records(path, _prompt_of)
    except RowError as error:
        raise PromptFileError(str(error)) from error
    except OSError as error:
        raise PromptFileError(f"cannot read the prompt file {path}: {error.strerror}") from error
    if not prompts:
        raise PromptFileError(f"{path} holds no prompts")
    return prompts


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

"""Prompt files: JSONL of ``{"prompt": text}`` or ``{"messages": [...]}`` with optional ``id`` and ``dimension``."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from charter.chat import ChatMessage, Role

_KEYS = {"prompt", "messages", "id", "dimension"}


class PromptFileError(ValueError):
    """A prompt file cannot be used; the message names it, and the line."""


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


def read_prompts(path: Path) -> list[TaskPrompt]:
    """Read a prompt file. Raises ``PromptFileError`` that names file and line for a malformed or empty one."""
    prompts = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        prompts.append(_prompt_of(json.loads(line)))
                    except ValueError as error:
                        raise PromptFileError(f"{path}, line {number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(f"cannot read the prompt file {path}: {error}") from error
    if not prompts:
        raise PromptFileError(f"{path} holds no prompts")
    return prompts


def _prompt_of(record: Any) -> TaskPrompt:
    if not isinstance(record, dict):
        raise ValueError("must be a JSON object")
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
    content = json.dumps([[message.role, message.content.strip()] for message in messages], ensure_ascii=False)
    return TaskPrompt(hashlib.sha256(content.encode()).hexdigest()[:16], messages, dimension)


def _message_of(turn: Any) -> ChatMessage:
    if not isinstance(turn, dict) or set(turn) != {"role", "content"} or turn["role"] not in get_args(Role):
        raise ValueError(f"a message needs role ({', '.join(get_args(Role))}) and content")
    if not isinstance(turn["content"], str) or not turn["content"].strip():
        raise ValueError("prompt and content must be text that is not empty")
    return ChatMessage(turn["role"], turn["content"])

"""Conversations to learn from: whole ones in many layouts, each with its place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.dialogues import dialogue_turns, is_dialogue
from charter.data.errors import BadRowError
from charter.data.exports import task_of
from charter.data.requests import CONVERSATIONS, REQUESTS, column_of, request_turns, with_system
from charter.data.rows import Fields, Row, Where
from charter.data.sources import Source, read
from charter.data.turns import text_of, turns_of

_ANSWERS = ("completion", "response", "answer", "output")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of a conversation in which the assistant says something, and where it was read."""

    messages: tuple[ChatMessage, ...]
    where: Where


def conversations(source: str | Path, bad: BadRows | None = None) -> Iterator[Conversation]:
    """The conversations of ``source`` (as ``Source.parse``), streaming.

    A row holds ``messages`` or ``conversations`` (roles and names of ShareGPT too), or a request with its answer:
    ``prompt``, ``instruction`` with ``input`` (Alpaca) or ``question``, and ``completion``, ``response``, ``answer`` or
    ``output``, with an optional ``system``. A column that is named holds messages, a dialogue in one text (HH-RLHF), or
    the answer to the request beside it. Exports of Argilla and Label Studio hold these in their tasks.
    Raises ``DataError``: behind the last row where bad rows stop (the default), and when a file cannot be read.
    """
    parsed = Source.parse(source)

    def make(row: Row) -> list[Conversation]:
        fields = row.fields()
        return [Conversation(conversation_turns(task_of(fields) or fields, parsed.column), row.where)]

    return read(parsed, make, bad or BadRows())


def conversation_turns(fields: Fields, column: str = "") -> tuple[ChatMessage, ...]:
    """The turns of a row. Raises ``BadRowError``."""
    turns = _turns(fields, column)
    _check(turns)
    return turns


def _turns(fields: Fields, column: str) -> tuple[ChatMessage, ...]:
    if column:
        return _named(fields, column)
    if whole := next((name for name in CONVERSATIONS if name in fields), None):
        return with_system(fields, turns_of(fields[whole], whole))
    request = request_turns(fields)
    answer = next((name for name in _ANSWERS if name in fields), None)
    if request is None or answer is None:
        raise BadRowError(
            "of no known layout",
            f"needs {' or '.join(CONVERSATIONS)}, or one of {', '.join(REQUESTS)} with one of {', '.join(_ANSWERS)}; "
            f"it has {', '.join(fields) or 'nothing'}. FILE#COLUMN names another column",
        )
    if isinstance(fields[answer], list):
        return request + turns_of(fields[answer], answer)
    return (*request, ChatMessage("assistant", text_of(fields[answer], answer)))


def _named(fields: Fields, column: str) -> tuple[ChatMessage, ...]:
    """A whole conversation, or the answer to the request beside it, as ``chosen`` often is."""
    value = column_of(fields, column)
    others = {name: other for name, other in fields.items() if name != column}
    if isinstance(value, str) and not value.lstrip().startswith("["):
        request = None if is_dialogue(value) else request_turns(others)
        if request is None:
            return dialogue_turns(value, column)
        return (*request, ChatMessage("assistant", text_of(value, column)))
    turns = turns_of(value, column)
    if turns and turns[0].role == "assistant":
        return (request_turns(others) or ()) + turns
    return turns


def _check(turns: Sequence[ChatMessage]) -> None:
    said = [turn for turn in turns if turn.role != "system"]
    if not any(turn.role == "assistant" for turn in said):
        raise BadRowError("without a turn of the assistant")
    if said[0].role == "assistant":
        raise BadRowError("begun by the assistant", "the assistant speaks before the user: there is nothing to answer")
    if any(not turn.content.strip() for turn in said):
        raise BadRowError("with an empty turn")

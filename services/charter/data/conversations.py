"""Conversations to learn from: whole ones in many layouts, each with its place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.dialogues import dialogue_turns
from charter.data.errors import BadRowError
from charter.data.rows import Fields, Row, Where
from charter.data.sources import Source, read
from charter.data.turns import text_of, turns_of

# Columns of whole conversations, then those of a request and of its answer; the first that a row has is taken.
CONVERSATIONS = ("messages", "conversations", "conversation")
REQUESTS = ("prompt", "instruction", "question", "query")
_ANSWERS = ("completion", "response", "answer", "output")
# What Alpaca's `input` and Dolly's `context` add to the instruction.
_MATERIAL = ("input", "context")
_SYSTEM = ("system", "system_prompt")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of a conversation in which the assistant says something, and where it was read."""

    messages: tuple[ChatMessage, ...]
    where: Where


def conversations(source: str, bad: BadRows | None = None) -> Iterator[Conversation]:
    """The conversations of ``source`` (as ``Source.parse``), streaming.

    A row holds ``messages`` or ``conversations`` (roles and names of ShareGPT too), or a request with its answer:
    ``prompt``, ``instruction`` with ``input`` (Alpaca) or ``question``, and ``completion``, ``response``, ``answer`` or
    ``output``, with an optional ``system``. A column that is named holds messages, or a dialogue in one text (HH-RLHF).
    Raises ``DataError``: behind the last row where bad rows stop (the default), and when a file cannot be read.
    """
    parsed = Source.parse(source)

    def make(row: Row) -> list[Conversation]:
        turns = _turns(row.fields(), parsed.column)
        _check(turns)
        return [Conversation(turns, row.where)]

    return read(parsed, make, bad or BadRows())


def request_turns(fields: Fields) -> tuple[ChatMessage, ...] | None:
    """The turns that a row asks with, or None where it has no column of a request. Raises ``BadRowError``."""
    name = next((name for name in REQUESTS if name in fields), None)
    if name is None:
        return None
    system = next((one for one in _SYSTEM if fields.get(one)), None)
    opening = (ChatMessage("system", text_of(fields[system], system)),) if system else ()
    if isinstance(fields[name], list):
        return opening + turns_of(fields[name], name)
    text = text_of(fields[name], name)
    material = next((one for one in _MATERIAL if name == "instruction" and fields.get(one)), None)
    if material:
        text += f"\n\n{text_of(fields[material], material)}"
    return (*opening, ChatMessage("user", text))


def _turns(fields: Fields, column: str) -> tuple[ChatMessage, ...]:
    if column:
        if column not in fields:
            raise BadRowError(f"without {column}", f"has no column {column}; it has {', '.join(fields)}")
        value = fields[column]
        dialogue = isinstance(value, str) and not value.lstrip().startswith("[")
        return dialogue_turns(value, column) if dialogue else turns_of(value, column)
    if whole := next((name for name in CONVERSATIONS if name in fields), None):
        turns = turns_of(fields[whole], whole)
        system = next((one for one in _SYSTEM if fields.get(one)), None)
        if system and turns and turns[0].role != "system":
            turns = (ChatMessage("system", text_of(fields[system], system)), *turns)
        return turns
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


def _check(turns: Sequence[ChatMessage]) -> None:
    said = [turn for turn in turns if turn.role != "system"]
    if not any(turn.role == "assistant" for turn in said):
        raise BadRowError("without a turn of the assistant")
    if said[0].role == "assistant":
        raise BadRowError("begun by the assistant", "the assistant speaks before the user: there is nothing to answer")
    if any(not turn.content.strip() for turn in said):
        raise BadRowError("with an empty turn")

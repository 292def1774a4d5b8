"""Prompts to answer: requests, or what is said in a conversation before the assistant answers for the first time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows, said
from charter.data.dialogues import dialogue_turns, is_dialogue, spoken
from charter.data.errors import BadRowError, DataError
from charter.data.exports import task_of
from charter.data.requests import CONVERSATIONS, REQUESTS, column_of, request_turns, with_system
from charter.data.rows import Fields, Row
from charter.data.sources import Source, read
from charter.data.turns import first_user_turns, text_of, turns_of
from charter.held_out import prompt_key

# Other columns that begin with a prompt: of comparisons, and of red-team attempts (HH-RLHF).
_OTHERS = ("chosen", "transcript", "turns", "text")


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


def prompts(source: str | Path, bad: BadRows) -> Iterator[TaskPrompt]:
    """The prompts of ``source`` (as ``Source.parse``), streaming.

    A row holds a request (``prompt``, ``instruction`` with its ``input``, ``question``), a conversation (``messages``,
    ``conversations``) or one of ``chosen``, ``transcript``, ``turns`` and ``text``, and an optional ``dimension``; a
    column that is named holds any of these. Exports of Argilla and Label Studio hold them in their tasks. Of a
    conversation that the user ends all is the prompt, of others the first turns. Raises ``DataError`` behind the last
    row where bad ones stop, and when a file cannot be read.
    """
    parsed = Source.parse(source)

    def make(row: Row) -> list[TaskPrompt]:
        fields = row.fields()
        fields = task_of(fields) or fields
        turns = _turns(row, fields, parsed.column)
        if not turns:
            raise _empty("a prompt")
        if turns[-1].role != "user":
            turns = first_user_turns(turns)
        if not any(turn.role == "user" for turn in turns):
            raise BadRowError("without a turn of the user")
        if turns[-1].role != "user":
            raise BadRowError("not ended by the user", f"the last turn must be the user's, not the {turns[-1].role}'s")
        if not turns[-1].content.strip():
            raise _empty("a prompt")
        if not all(turn.content.strip() for turn in turns):
            raise BadRowError("with an empty turn", "a turn before the last is empty")
        return [TaskPrompt(prompt_key(turns), turns, text_of(fields.get("dimension", ""), "dimension"))]

    return read(parsed, make, bad)


def read_prompts(source: str | Path, bad: BadRows | None = None) -> list[TaskPrompt]:
    """All prompts of ``source``. Raises as ``prompts``, and ``DataError`` where there are none."""
    bad = bad or BadRows()
    found = list(prompts(source, bad))
    if not found:
        raise DataError([f"{source} holds no prompts" + (f"; left out: {said(bad.counts)}" if bad.counts else "")])
    return found


def _turns(row: Row, fields: Fields, column: str) -> tuple[ChatMessage, ...]:
    columns = (column,) if column else (*CONVERSATIONS, *REQUESTS, *_OTHERS)
    name = next((one for one in columns if one in fields), "")
    if not name and (null := next((one for one in row.null_columns() if one in columns), "")):
        raise _empty(null)
    if not name and not column:
        known = ", ".join((*REQUESTS, *CONVERSATIONS, *_OTHERS))
        raise BadRowError(
            "of no known layout",
            f"needs one of {known}; it has {', '.join(fields) or 'nothing'}. FILE#COLUMN names another column",
        )
    value = column_of(fields, name or column)
    if not column and name in REQUESTS:
        return request_turns(fields) or ()
    if isinstance(value, str) and not value.strip():
        raise _empty(name)
    if not column and name in CONVERSATIONS:
        return with_system(fields, turns_of(value, name))
    return _begun(value, name)


def _empty(name: str) -> BadRowError:
    return BadRowError("with an empty prompt", f"{name} must be text that is not empty")


def _begun(value: object, name: str) -> tuple[ChatMessage, ...]:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        # The user's turns alone, as MT-bench has them: what is answered first is the first.
        value = value[0]
    if isinstance(value, list):
        return turns_of(value, name)
    text = text_of(value, name)
    return dialogue_turns(text, name) if is_dialogue(text) else spoken(text, name)

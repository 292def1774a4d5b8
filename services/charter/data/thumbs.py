"""Single answers that somebody found good or bad."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.conversations import conversation_turns
from charter.data.errors import BadRowError
from charter.data.pairs.read import OURS, comparison_of_ours
from charter.data.rows import Fields, Row, Where
from charter.data.sources import Source, read
from charter.data.turns import text_of
from charter.rpc.messages import chat_messages
from charter.storage.comparisons import enum_name
from charter.v1 import types_pb2

# Columns of the verdict: TRL's `label`, LLaMA-Factory's `kto_tag`, and what logs of chats call it.
_VERDICTS = ("label", "kto_tag", "thumb", "thumbs", "rating", "feedback", "desirable", "good")
_GOOD = ("true", "1", "up", "thumbs_up", "thumbs up", "good", "positive", "desirable", "like", "👍")
_BAD = ("false", "0", "-1", "down", "thumbs_down", "thumbs down", "bad", "negative", "undesirable", "dislike", "👎")


@dataclass(frozen=True, slots=True)
class Thumb:
    """An answer to a prompt, whether it was found good, and where it was read.

    ``source`` (AI, HUMAN or IMPORTED) and ``split`` are those of an export of ours; other rows are imported.
    """

    prompt: tuple[ChatMessage, ...]
    answer: str
    good: bool
    dimension: str
    where: Where
    source: str = "IMPORTED"
    split: str = ""


def thumbs(source: str | Path, bad: BadRows | None = None) -> Iterator[Thumb]:
    """The verdicts of ``source`` (as ``Source.parse``), streaming.

    A row is a conversation in any layout of ``charter.data.conversations`` that ends with the answer, and beside it
    ``label``, ``thumb``, ``rating``, … (true or false, 1 or 0, up or down, good or bad), or the column that is named;
    or an export of ours, whose answers each give one by their ``rating``. Raises ``DataError`` behind the last row
    where bad ones stop (the default), and when a file cannot be read.
    """
    parsed = Source.parse(source)

    def make(row: Row) -> list[Thumb]:
        fields = row.fields()
        if fields.keys() >= OURS:
            return _of_comparison(comparison_of_ours(fields, parsed.column), row.where)
        (*prompt, answer) = conversation_turns(fields)
        if answer.role != "assistant":
            raise BadRowError(
                "not ended by the assistant", f"the last turn must be the answer, not the {answer.role}'s"
            )
        dimension = text_of(fields.get("dimension", ""), "dimension")
        return [Thumb(tuple(prompt), answer.content, _verdict(fields, parsed.column), dimension, row.where)]

    return read(parsed, make, bad or BadRows())


def _of_comparison(comparison: types_pb2.Comparison, where: Where) -> list[Thumb]:
    rated = [one for one in (comparison.answer_a, comparison.answer_b) if one.rating]
    if not rated:
        raise BadRowError("without a rating", "neither answer has a rating")
    prompt, dimension = chat_messages(comparison.prompt), comparison.dimension
    source, split = enum_name("source", comparison.source), enum_name("split", comparison.split)
    return [
        Thumb(prompt, one.text, one.rating == types_pb2.RATING_UP, dimension, where, source, split) for one in rated
    ]


def _verdict(fields: Fields, column: str) -> bool:
    name = column or next((name for name in _VERDICTS if name in fields), "")
    if name not in fields:
        known = ", ".join(_VERDICTS)
        raise BadRowError("without a rating", f"needs one of {known}; it has {', '.join(fields)}")
    said = _plain(fields[name])
    if name == "rating" and not column and said.lstrip("-").isdigit():
        # The 1 of a scale from 1 to 5 is its worst.
        raise BadRowError(
            "rated in numbers", "rating may be on a scale: write FILE#rating where 1 is good and 0 or -1 is bad"
        )
    if said in _GOOD or said in _BAD:
        return said in _GOOD
    raise BadRowError("not a rating", f"{name} must be true or false, 1 or 0, up or down, good or bad")


def _plain(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()

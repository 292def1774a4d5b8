"""Plain texts to learn from: documents, each with its place."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charter.data.bad_rows import BadRows
from charter.data.errors import BadRowError
from charter.data.requests import column_of
from charter.data.rows import DOCUMENT, Row, Where
from charter.data.sources import Source, read
from charter.data.turns import text_of

_COLUMN = "text"


@dataclass(frozen=True, slots=True)
class Text:
    """A document, and where it was read."""

    text: str
    where: Where


def texts(source: str | Path, bad: BadRows | None = None) -> Iterator[Text]:
    """The documents of ``source`` (as ``Source.parse``), streaming: a ``.txt`` file is one, and so is each row.

    A row holds its document in the column ``text``, or in the one that is named. Raises ``DataError``: behind the last
    row where bad rows stop (the default), and when a file cannot be read.
    """
    parsed = Source.parse(source)
    column = parsed.column or _COLUMN

    def make(row: Row) -> list[Text]:
        if row.where.unit == DOCUMENT:
            return [Text(_checked(_decoded(row.content)), row.where)]
        return [Text(_checked(text_of(column_of(row.fields(), column), column)), row.where)]

    return read(parsed, make, bad or BadRows())


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadRowError("not valid Unicode", f"is not UTF-8: {error.reason} at byte {error.start}") from error


def _checked(text: str) -> str:
    if not text.strip():
        raise BadRowError("without a word")
    return text

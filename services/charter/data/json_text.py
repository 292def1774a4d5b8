"""JSON as people's files hold it: one value, and the items of a list too long for the memory."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from charter.data.errors import BadRowError

# Characters that are read at a time.
_PIECE = 1 << 20


def decode(content: bytes) -> Any:
    """The value of a JSON text. Raises ``BadRowError``; NaN and infinities are no JSON."""
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRowError("not valid JSON", f"not valid JSON: {error}") from error


def items(file: TextIO) -> Iterator[Any]:
    """Items of a JSON list, which is read in pieces. Raises ``ValueError`` where it is none, or breaks off."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    mark, text, at = _mark(file, "", 0)
    if mark != "[":
        raise ValueError("it does not begin with [")
    mark, text, at = _mark(file, text, at)
    while mark != "]":
        value, text, at = _value(decoder, file, text, at - 1)
        yield value
        mark, text, at = _mark(file, text, at)
        if mark == ",":
            mark, text, at = _mark(file, text, at)
            if mark == "]":
                raise ValueError("an item is missing behind the last comma")
        elif mark != "]":
            raise ValueError("a comma is missing")
    if (text[at:] + file.read()).strip():
        raise ValueError("more stands behind its end")


def _mark(file: TextIO, text: str, at: int) -> tuple[str, str, int]:
    """The next character that is no white space, the text that is in memory then, and the place behind it."""
    while True:
        while at < len(text):
            at += 1
            if not text[at - 1].isspace():
                return text[at - 1], text, at
        text, at = file.read(_PIECE), 0
        if not text:
            raise ValueError("it breaks off")


def _value(decoder: json.JSONDecoder, file: TextIO, text: str, at: int) -> tuple[Any, str, int]:
    """The value that begins at ``text[at]``, the text that is in memory then, and the place behind it."""
    while True:
        problem, value, end = "", None, len(text)
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            problem = str(error)
        # A number may go on where the piece ends.
        if end < len(text):
            return value, text, end
        # As much again each time: a long item is not parsed once for each piece.
        more = file.read(max(_PIECE, len(text) - at))
        if not more and problem:
            raise ValueError(problem)
        if not more:
            return value, text, end
        text, at = text[at:] + more, 0


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")

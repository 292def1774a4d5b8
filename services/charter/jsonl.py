"""JSON lines: files that people give, and logs that grow line by line.

Lines end at ``\\n`` alone. U+0085, U+2028 and U+2029, which ``str.splitlines`` takes for ends too, are ordinary
characters of a JSON text. A compressed file (gzip) is read like a plain one, whatever its name.
"""

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Bad lines that an error names; of further ones it says how many.
MOST_NAMED = 10
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RowError(ValueError):
    """Rows of files are bad; the message has a line for each, with file and number, up to ``MOST_NAMED``."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = [f"and {len(problems) - MOST_NAMED} more"] if len(problems) > MOST_NAMED else []
        super().__init__("\n".join([*problems[:MOST_NAMED], *more]))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file; ``number`` counts from 1."""

    path: Path
    number: int
    content: bytes

    def problem(self, what: str) -> str:
        """What is wrong with it, with its place."""
        return f"{self.path}, line {self.number}: {what}"

    def record(self) -> dict[str, Any]:
        """The JSON object that it holds. Raises ``RowError``."""
        try:
            record = json.loads(self.content.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RowError([self.problem(f"not valid JSON: {error}")]) from error
        if not isinstance(record, dict):
            raise RowError([self.problem("must be a JSON object")])
        return record


def lines(path: Path) -> Iterator[Line]:
    """The lines that are not blank, streaming.

    Raises ``OSError`` when the file cannot be read, ``RowError`` when it is compressed and broken off.
    """
    number = 0
    with path.open("rb") as file:
        try:
            for number, content in enumerate(_uncompressed(file), start=1):
                if number == 1:
                    content = content.removeprefix(_BYTE_ORDER_MARK)
                if content.strip():
                    yield Line(path, number, content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise RowError([f"{path}, after line {number}: the compressed file is damaged: {error}"]) from error


def read_records(path: Path, make: Callable[[dict[str, Any]], T]) -> list[T]:
    """What ``make`` makes of the object in each line.

    Raises ``RowError`` that names every line that is no object or of which ``make`` raised ``ValueError``,
    ``OSError`` when the file cannot be read.
    """
    made: list[T] = []
    problems: list[str] = []
    for line in lines(path):
        try:
            record = line.record()
        except RowError as error:
            problems += error.problems
            continue
        try:
            made.append(make(record))
        except ValueError as error:
            problems.append(line.problem(str(error)))
    if problems:
        raise RowError(problems)
    return made


def append_line(path: Path, text: str) -> None:
    """Add one line to a log and have it on the disk. ``text`` holds no line end."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[str]:
    """The lines of a log, without a last one that has no end: it is still being written. Raises ``OSError``."""
    content = path.read_bytes()
    return _split(content[: content.rfind(b"\n") + 1])


def recover_lines(path: Path) -> list[str]:
    """The lines of a log, before more are added; none when there is no file.

    A last line without its end is what a process that was killed had begun to write: it is cut off the file.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return _split(whole)


def _split(whole: bytes) -> list[str]:
    return whole.decode("utf-8").split("\n")[:-1]


def _uncompressed(file: io.BufferedReader) -> io.BufferedIOBase:
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")

"""Rows of files, streamed, each with its place: JSON lines, a JSON list, Parquet, CSV or text, told by the file's name.

Lines end at ``\\n`` alone: U+0085, U+2028 and U+2029, which ``str.splitlines`` takes for ends too, are ordinary
characters of a JSON text. A compressed file (gzip) is read like a plain one, whatever its name.
"""

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.data import json_text
from charter.data.errors import BadRowError, DataError

Fields = dict[str, Any]

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".csv.gz", ".txt")
# The unit of a file that is one row.
DOCUMENT = "document"
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Rows of a Parquet file that are in memory at a time.
_PARQUET_ROWS = 200


@dataclass(frozen=True, slots=True)
class Where:
    """Where a row stands: ``number`` counts lines, items or rows of ``file`` from 1. Its text names all."""

    file: str
    unit: str
    number: int

    @property
    def place(self) -> str:
        """Without the file: ``line 3``."""
        return f"{self.unit} {self.number}"

    def __str__(self) -> str:
        """For a person: ``file, line 3``."""
        return f"{self.file}, {self.place}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file; ``content`` is what was read: the bytes of a JSON line or of a whole text file, or a value."""

    where: Where
    content: Any

    def fields(self) -> Fields:
        """Its values by column, without those that are null. Raises ``BadRowError``."""
        return {name: one for name, one in self._values().items() if one is not None}

    def null_columns(self) -> list[str]:
        """The columns without a value. Raises ``BadRowError``."""
        return [name for name, one in self._values().items() if one is None]

    def _values(self) -> Fields:
        if self.where.unit == DOCUMENT:
            raise BadRowError("plain text", "is plain text: rows with columns are needed here")
        value = json_text.decode(self.content) if isinstance(self.content, bytes) else self.content
        if not isinstance(value, dict):
            raise BadRowError("not a JSON object", "must be a JSON object")
        return value


def rows_of(path: Path, file: str) -> Iterator[Row]:
    """The rows of one file, which places and errors call ``file``. Blank lines are no rows.

    Raises ``DataError`` when the file cannot be read, or not to its end.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".json")):
        return _json(path, file, lines=name.endswith(".jsonl"))
    if name.endswith(".parquet"):
        return _parquet(path, file)
    if name.endswith(".csv"):
        return _csv(path, file)
    if name.endswith(".txt"):
        return _document(path, file)
    raise DataError([f"{file}: the name must end in one of {', '.join(ENDINGS)}"])


@contextmanager
def opened(path: Path, file: str) -> "Iterator[io.BufferedReader[Any]]":
    """The bytes of a file, uncompressed and without a byte order mark. Raises ``DataError``."""
    try:
        with path.open("rb") as raw:
            content: io.BufferedReader[Any] = raw
            if raw.peek(2)[:2] == _GZIP:
                content = io.BufferedReader(gzip.GzipFile(fileobj=raw))
            if content.peek(3)[:3] == _BYTE_ORDER_MARK:
                content.read(3)
            yield content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError([f"{file}: the compressed file is damaged: {error}"]) from error
    except OSError as error:
        reason = {FileNotFoundError: "there is no such file", IsADirectoryError: "it is a folder"}.get(type(error))
        raise DataError([f"cannot read {file}: {reason or error.strerror or error}"]) from error


def _json(path: Path, file: str, *, lines: bool) -> Iterator[Row]:
    """One object a line, or a list, by how the file begins: sets call either by the other's name.

    ``lines`` says which is meant by a file that begins in neither way.
    """
    with opened(path, file) as content:
        begin = content.peek(1)[:1]
        if begin == b"[" or not (begin == b"{" or lines):
            yield from _items(content, file)
            return
        for number, line in enumerate(content, start=1):
            if number == 1 and not lines and not _is_json(line):
                raise DataError([f"{file}: must be a JSON list of objects, or one object a line"])
            if line.strip():
                yield Row(Where(file, "line", number), line)


def _items(content: "io.BufferedReader[Any]", file: str) -> Iterator[Row]:
    number = 0
    try:
        for number, item in enumerate(json_text.items(io.TextIOWrapper(content, encoding="utf-8")), start=1):
            yield Row(Where(file, "item", number), item)
    except ValueError as error:
        raise DataError([f"{file}, after item {number}: not a JSON list: {error}"]) from error


def _is_json(line: bytes) -> bool:
    try:
        json_text.decode(line)
    except BadRowError:
        return False
    return True


def _parquet(path: Path, file: str) -> Iterator[Row]:
    # Here, not at the top: who reads no Parquet waits for no pyarrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path, file) as content:
        number = 0
        try:
            # Read ahead, every part of the file would stay in memory until its end.
            for batch in pq.ParquetFile(content, pre_buffer=False).iter_batches(batch_size=_PARQUET_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(Where(file, "row", number), fields)
        except pa.ArrowException as error:
            raise DataError([f"{file} is not a readable Parquet file: {error}"]) from error


def _csv(path: Path, file: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with opened(path, file) as content:
        if content.peek(1)[:1] == b"#":
            # A remark before the names of the columns, as tools write it.
            content.readline()
        text = io.TextIOWrapper(content, encoding="utf-8", newline="")
        number = 0
        try:
            for number, fields in enumerate(csv.DictReader(text, strict=True), start=1):
                yield Row(Where(file, "row", number), fields if None not in fields else "more cells than columns")
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError([f"{file}, after row {number}: not readable as CSV: {error}"]) from error


def _document(path: Path, file: str) -> Iterator[Row]:
    with opened(path, file) as content:
        yield Row(Where(file, DOCUMENT, 1), content.read())

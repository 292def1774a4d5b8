"""Files of rows: written whole or not at all, read row by row with the place of each; JSONL or Parquet by ending."""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from charter.storage.comparisons import SCHEMA, Row, comparison_to_row, row_to_json
from charter.v1 import types_pb2

# Rows that are in memory at a time, and in one row group of a Parquet file.
_ROWS = 1000


class RowError(ValueError):
    """A row of a file is malformed; the message names the file and the line (Parquet: the row)."""

    def __init__(self, path: Path, place: str, problem: str) -> None:
        super().__init__(f"{path}, {place}: {problem}")


def write_comparisons(path: Path, comparisons: Iterable[types_pb2.Comparison]) -> int:
    """Write comparisons in our own layout, streaming, and return how many. Raises as ``write_rows``."""
    return write_rows(path, map(comparison_to_row, comparisons), SCHEMA)


def write_rows(path: Path, rows: Iterable[Row], schema: pa.Schema) -> int:
    """Write rows to ``.jsonl`` or ``.parquet``, streaming, and return how many.

    The file appears under its name only when it is complete. Raises ``ValueError`` for another ending, ``OSError`` when
    the file cannot be written, and whatever ``rows`` raises.
    """
    write = _write_parquet if _is_parquet(path) else _write_jsonl
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        count = write(temporary, iter(rows), schema)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row with its place (``line 3`` or ``row 3``), streaming. Blank lines of JSONL are skipped.

    Raises ``RowError`` for a malformed line, ``ValueError`` for another ending or a broken Parquet file, ``OSError``
    when the file cannot be read.
    """
    return _read_parquet(path) if _is_parquet(path) else _read_jsonl(path)


def _is_parquet(path: Path) -> bool:
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: the name must end in .jsonl or .parquet")
    return path.suffix.lower() == ".parquet"


def _write_jsonl(path: Path, rows: Iterator[Row], schema: pa.Schema) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(row_to_json(row) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterator[Row], schema: pa.Schema) -> int:
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode(), parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                raise RowError(path, f"line {number}", f"not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise RowError(path, f"line {number}", "must be a JSON object")
            yield f"line {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")

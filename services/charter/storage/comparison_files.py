"""Files of rows, written whole or not at all: JSONL or Parquet by ending. ``charter.data.rows`` reads them."""

import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from charter.atomic_files import replacing
from charter.storage.comparisons import COLUMNS, Row, comparison_to_row, row_to_json
from charter.v1 import types_pb2


def write_comparisons(path: Path, comparisons: Iterable[types_pb2.Comparison]) -> int:
    """Write comparisons in our own layout, streaming, and return how many. Raises as ``write_rows``."""
    return write_rows(path, map(comparison_to_row, comparisons), COLUMNS)


def write_rows(path: Path, rows: Iterable[Row], columns: Mapping[str, str]) -> int:
    """Write rows to ``.jsonl``, ``.jsonl.gz`` or ``.parquet``, streaming, and return how many.

    ``columns`` are names with kinds, as ``charter.storage.comparisons.COLUMNS``.

    The file appears under its name only when it is complete. Raises ``ValueError`` for another ending, ``OSError`` when
    the file cannot be written, and whatever ``rows`` raises.
    """
    if _is_parquet(path):
        # Here, not at the top: who writes no Parquet waits for no pyarrow.
        from charter.storage.parquet import write_parquet

        with replacing(path) as temporary:
            return write_parquet(temporary, iter(rows), columns)
    open_file = gzip.open if path.name.lower().endswith(".gz") else open
    with replacing(path) as temporary, open_file(temporary, "wt", encoding="utf-8", newline="\n") as file:
        return _write_jsonl(file, rows)


def _is_parquet(path: Path) -> bool:
    name = path.name.lower()
    if not name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise ValueError(f"{path}: the name must end in .jsonl or .parquet, or .jsonl.gz")
    return name.endswith(".parquet")


def _write_jsonl(file: IO[str], rows: Iterable[Row]) -> int:
    count = 0
    for row in rows:
        file.write(row_to_json(row) + "\n")
        count += 1
    return count

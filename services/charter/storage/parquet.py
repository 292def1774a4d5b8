"""Rows as Parquet files. Imported only where there is one: pyarrow takes longer to import than most commands run."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from charter.storage.comparisons import JUDGEMENT_COLUMNS, Row

# Rows that are in memory at a time, and in one row group of a file.
_ROWS = 1000

_SIMPLE = {
    "text": pa.string(),
    "number": pa.float64(),
    "numbers": pa.list_(pa.float64()),
    "count": pa.int64(),
    "flag": pa.bool_(),
    "time": pa.timestamp("us", tz="UTC"),
    "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
}
_JUDGEMENT = pa.struct([(name, _SIMPLE[kind]) for name, kind in JUDGEMENT_COLUMNS.items()])
_TYPES = {**_SIMPLE, "judgements": pa.list_(_JUDGEMENT)}


def schema_of(columns: Mapping[str, str]) -> pa.Schema:
    """Types of columns, which are given by their kinds."""
    return pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])


def write_parquet(path: Path, rows: Iterator[Row], columns: Mapping[str, str]) -> int:
    """Write rows, streaming, and return how many."""
    schema, count = schema_of(columns), 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def count_rows(path: Path, columns: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How many rows have which texts in some columns; what is null counts as an empty text."""
    table = pq.read_table(path, columns=list(columns))
    return Counter(tuple(row[name] or "" for name in columns) for row in table.to_pylist())

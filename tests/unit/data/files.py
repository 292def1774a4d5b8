"""Files of rows in every form that is read."""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = Sequence[dict[str, Any]]


def write_rows(path: Path, rows: Rows) -> Path:
    """Write rows in the form that the file's name says."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    if name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        content = path.read_bytes()
    elif name.endswith(".json"):
        content = json.dumps(list(rows), ensure_ascii=False, indent=1).encode()
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.name.lower().endswith(".gz") else content)
    return path

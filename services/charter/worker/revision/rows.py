"""Which prompts get rows of revisions, and all rows as one table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from charter.data.prompts import TaskPrompt
from charter.runs.revisions import RevisionRow
from charter.storage.comparison_files import write_rows
from charter.v1 import run_pb2

# Of the verdicts: nothing was found wrong with the revision.
CLEAN = "clean"
# Columns of the Parquet file, by kind as ``charter.storage.comparisons.COLUMNS``.
COLUMNS = {
    "id": "text",
    "parent": "text",
    "prompt": "messages",
    "dimension": "text",
    "round": "count",
    "answer": "text",
    "principle": "text",
    "critique": "text",
    "critique_cut_off": "flag",
    "revision": "text",
    "policy": "text",
    "policy_version": "count",
    "judge": "text",
    "constitution_digest": "text",
    "verdict": "text",
    "outcome": "text",
}


def is_revised(spec: run_pb2.RevisionSpec, prompt: TaskPrompt) -> bool:
    """Whether a prompt is of the dimensions whose answers are revised."""
    return not spec.dimensions or prompt.dimension in spec.dimensions


def write_table(path: Path, rows: Sequence[RevisionRow], outcomes: Mapping[str, str]) -> None:
    """Write all rows as Parquet, with what became of each by its id."""
    values = [asdict(row) | {"id": row.id, "outcome": outcomes[row.id]} for row in rows]
    write_rows(path, [{name: one[name] for name in COLUMNS} for one in values], COLUMNS)

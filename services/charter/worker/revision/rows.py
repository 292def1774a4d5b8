"""The rows of a revision stage: every critique and revision, by what it was written, and what became of it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from charter.chat import ChatMessage
from charter.jsonl import append_line, recover_lines
from charter.storage.comparison_files import write_rows

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
    "revision": "text",
    "policy": "text",
    "policy_version": "count",
    "judge": "text",
    "constitution_digest": "text",
    "verdict": "text",
    "outcome": "text",
}


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """One critique and revision of one answer.

    ``answer`` is what was revised: the policy's answer, or the revision of the row ``parent``. ``verdict`` is
    ``clean``, a kind of ``charter.worker.revision.filters``, or why the judge wrote nothing.
    """

    prompt_key: str
    prompt: tuple[ChatMessage, ...]
    dimension: str
    round: int
    parent: str
    answer: str
    principle: str
    critique: str
    revision: str
    policy: str
    policy_version: int
    judge: str
    constitution_digest: str
    verdict: str

    @property
    def id(self) -> str:
        """Names the row in its run."""
        return row_id(self.prompt_key, self.round)


def row_id(prompt_key: str, number: int) -> str:
    """Of the row of a prompt and round."""
    return f"{prompt_key}-{number}"


def append_rows(path: Path, rows: Iterable[RevisionRow]) -> None:
    """Add rows to a file that is as long as the stage has come."""
    for row in rows:
        append_line(path, json.dumps(asdict(row), ensure_ascii=False))


def read_rows(path: Path) -> list[RevisionRow]:
    """What attempts so far have written; a last line that is broken off is taken away."""
    rows = [json.loads(line) for line in recover_lines(path)]
    return [
        RevisionRow(**{**row, "prompt": tuple(ChatMessage(**message) for message in row["prompt"])}) for row in rows
    ]


def write_table(path: Path, rows: Sequence[RevisionRow], outcomes: Mapping[str, str]) -> None:
    """Write all rows as Parquet, with what became of each by its id."""
    values = [asdict(row) | {"id": row.id, "outcome": outcomes[row.id]} for row in rows]
    write_rows(path, [{name: one[name] for name in COLUMNS} for one in values], COLUMNS)

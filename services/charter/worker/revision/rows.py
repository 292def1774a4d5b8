"""The rows of a revision stage: every critique and revision, by what it was written, and what became of it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.jsonl import append_lines
from charter.state_files import read_log
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
    # The token limit ended the critique, which was followed as far as it goes.
    critique_cut_off: bool = False

    @property
    def id(self) -> str:
        """Names the row in its run."""
        return row_id(self.prompt_key, self.round)


def is_revised(spec: run_pb2.RevisionSpec, prompt: TaskPrompt) -> bool:
    """Whether a prompt is of the dimensions whose answers are revised."""
    return not spec.dimensions or prompt.dimension in spec.dimensions


def row_id(prompt_key: str, number: int) -> str:
    """Of the row of a prompt and round."""
    return f"{prompt_key}-{number}"


def append_rows(path: Path, rows: Iterable[RevisionRow]) -> None:
    """Add rows to a file that is as long as the stage has come."""
    append_lines(path, [json.dumps(asdict(row), ensure_ascii=False) for row in rows])


def read_rows(path: Path) -> list[RevisionRow]:
    """What attempts so far have written; a last line that is broken off is taken away. Raises ``StateFileError``."""
    return read_log(path, _row, "Delete it and resume the run, which then writes these revisions again")


def _row(line: str) -> RevisionRow:
    row = json.loads(line)
    return RevisionRow(**{**row, "prompt": tuple(ChatMessage(**message) for message in row["prompt"])})


def write_table(path: Path, rows: Sequence[RevisionRow], outcomes: Mapping[str, str]) -> None:
    """Write all rows as Parquet, with what became of each by its id."""
    values = [asdict(row) | {"id": row.id, "outcome": outcomes[row.id]} for row in rows]
    write_rows(path, [{name: one[name] for name in COLUMNS} for one in values], COLUMNS)

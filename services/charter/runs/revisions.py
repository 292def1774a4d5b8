"""Critiques and revisions in a run's folder (``revision/``): every row, by what it was written, and its outcome."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from charter.atomic_files import write_json
from charter.chat import ChatMessage
from charter.jsonl import append_lines
from charter.state_files import read_log

FOLDER = "revision"
# Rows as they come, and what became of them by their ids, written when all are there.
ROWS, OUTCOMES = f"{FOLDER}/rows.jsonl", f"{FOLDER}/outcomes.json"


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """One critique and revision of one answer.

    ``answer`` is what was revised: the policy's answer, or the revision of the row ``parent``. ``verdict`` is
    ``clean``, what a filter found, or why the judge wrote nothing.
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


def row_id(prompt_key: str, number: int) -> str:
    """Of the row of a prompt and round."""
    return f"{prompt_key}-{number}"


def append_rows(path: Path, rows: Sequence[RevisionRow]) -> None:
    """Add rows to a file that is as long as the stage has come."""
    append_lines(path, [json.dumps(asdict(row), ensure_ascii=False) for row in rows])


def recover_rows(path: Path) -> list[RevisionRow]:
    """What attempts so far have written; a last line that is broken off is taken away. Raises ``StateFileError``."""
    return read_log(path, _row, "Delete it and resume the run, which then writes these revisions again")


def new_rows(path: Path, offset: int) -> Iterator[tuple[int, RevisionRow]]:
    """Whole rows from a byte offset on, each with the offset behind it; the file may be growing. None without a file.

    Raises ``ValueError`` for a line that is no row.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, _row(line.decode("utf-8"))


def write_outcomes(folder: Path, outcomes: dict[str, str]) -> None:
    """Note what became of every row of a run, by its id."""
    write_json(folder / OUTCOMES, outcomes)


def read_outcomes(folder: Path) -> dict[str, str]:
    """What became of every row of a run; empty while that is not decided."""
    file = folder / OUTCOMES
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _row(line: str) -> RevisionRow:
    row = json.loads(line)
    return RevisionRow(**{**row, "prompt": tuple(ChatMessage(**message) for message in row["prompt"])})

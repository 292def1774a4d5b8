"""Which prompts get rows of revisions, and all rows as one table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from charter.runs.results import RevisionSample
from charter.runs.revisions import RevisionRow
from charter.shown import beginning
from charter.storage.comparison_files import write_rows

# Of the verdicts: nothing was found wrong with the revision.
CLEAN = "clean"
# Characters of a sample's texts.
_SHOWN = 160
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


def write_table(path: Path, rows: Sequence[RevisionRow], outcomes: Mapping[str, str]) -> None:
    """Write all rows as Parquet, with what became of each by its id."""
    values = [asdict(row) | {"id": row.id, "outcome": outcomes[row.id]} for row in rows]
    write_rows(path, [{name: one[name] for name in COLUMNS} for one in values], COLUMNS)


def samples(rows: Sequence[RevisionRow], outcomes: Mapping[str, str]) -> Iterator[RevisionSample]:
    """The first row of each outcome, cut short; ``outcomes`` by a row's id."""
    first: dict[str, RevisionRow] = {}
    for row in rows:
        first.setdefault(outcomes[row.id], row)
    for outcome, row in sorted(first.items()):
        prompt = beginning(row.prompt[-1].content)
        yield RevisionSample(outcome, row.principle, prompt, _cut(row.answer), _cut(row.revision))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

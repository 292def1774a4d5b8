"""What commands that read people's data do with rows that cannot be used."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from charter.cli.output import errors
from charter.data.bad_rows import BadRows, said
from charter.data.sources import Source


class OnBadRow(StrEnum):
    """What is done with a row that cannot be used."""

    STOP = "stop"
    SKIP = "skip"


OnBadRowOption = Annotated[
    OnBadRow,
    typer.Option(
        "--on-bad-row",
        help="stop: name them, and do nothing. skip: leave them out, and write them to NAME.left-out.jsonl here.",
    ),
]


def bad_rows_of(source: str, on_bad_row: OnBadRow) -> BadRows:
    """For one source of a command; those that are skipped are written to a file in the current folder."""
    return BadRows(on_bad_row.value, Path(f"{Source.parse(source).name}.left-out.jsonl"))


def tell(source: str, bad: BadRows) -> None:
    """Say how many rows of a source were left out for what reason, and where they are."""
    if bad.counts:
        text = f"left out of {source}: {said(bad.counts)}; they are in {bad.left_out}"
        errors.print(text, markup=False, highlight=False, soft_wrap=True)

"""Where data is: a file of this machine, or a data set of the hub; and, behind ``#``, the column that holds it."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from charter.data.bad_rows import BadRows
from charter.data.errors import BadRowError
from charter.data.rows import Row, rows_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A file or ``hub:`` data set, and the column that holds what is wanted; empty where the columns tell."""

    place: str
    column: str = ""

    @classmethod
    def parse(cls, source: str | Path) -> "Source":
        """From ``PLACE`` or ``PLACE#COLUMN``. A file whose whole name has a ``#`` is meant where there is one."""
        text = str(source)
        place, hash_mark, column = text.rpartition("#")
        if not hash_mark or os.path.exists(text):
            return cls(text)
        return cls(place, column)

    @property
    def name(self) -> str:
        """Its short name: that of the file."""
        return Path(self.place).name

    def files(self) -> list[tuple[Path, str]]:
        """Its files, and the name of each for people. Raises ``DataError`` for a data set that cannot be had."""
        return [(Path(self.place).expanduser(), self.place)]


def read(
    source: Source,
    make: Callable[[Row], Iterable[T]],
    bad: BadRows,
    joined: Callable[[Iterator[Row]], Iterator[Row]] = iter,
) -> Iterator[T]:
    """What ``make`` makes of each row, streaming; it raises ``BadRowError`` for one that cannot be used.

    ``joined`` may make one row of several of a file.
    Raises ``DataError`` behind the last row where bad ones stop, and when a file cannot be read.
    """
    for path, name in source.files():
        for row in joined(rows_of(path, name)):
            try:
                made = list(make(row))
            except BadRowError as error:
                bad.add(row, error)
                continue
            if not bad.stopped:
                yield from made
    bad.raise_if_stopped()

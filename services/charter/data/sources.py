"""Where data is: a file of this machine, or a data set of the hub; and, behind ``#``, the column that holds it."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from charter.data.bad_rows import BadRows
from charter.data.errors import BadRowError, DataError
from charter.data.hub import PREFIX, HubSet, meant_for_hub
from charter.data.rows import Row, rows_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A file or ``hub:`` data set, and the column that holds what is wanted; empty where the columns tell."""

    place: str
    column: str = ""

    @classmethod
    def parse(cls, source: str | Path, base: Path = Path()) -> "Source":
        """From ``PLACE`` or ``PLACE#COLUMN``, relative to ``base``. A file whose whole name has a ``#`` comes first."""
        text = str(source)
        place, hash_mark, column = text.rpartition("#")
        # Never raises, whatever the name is.
        if not hash_mark or os.path.isfile(base / text):
            return cls(text)
        return cls(place, column)

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        return f"{self.place}#{self.column}" if self.column else self.place

    @property
    def of_hub(self) -> bool:
        """Whether it is a data set of the hub, and no file."""
        return self.place.startswith(PREFIX)

    @property
    def name(self) -> str:
        """Its short name: that of the file, or of the data set without its owner."""
        return HubSet.parse(self.place).name.split("/")[-1] if self.of_hub else Path(self.place).name

    def without_folder(self) -> "Source":
        """The same, a file by its name alone: to be published."""
        return self if self.of_hub else replace(self, place=Path(self.place).name)

    def files(self) -> list[tuple[Path, str]]:
        """Its files, and the name of each for people. Raises ``DataError`` for a data set that cannot be had."""
        if self.of_hub:
            return HubSet.parse(self.place).files()
        path = Path(self.place).expanduser()
        if not os.path.exists(path) and (hint := meant_for_hub(self.place)):
            raise DataError([f"no such file: {self.place}{hint}"])
        return [(path, self.place)]

    def digest(self) -> str:
        """The sha256 of its file in hex digits; of several files, that of theirs one behind the other.

        Raises ``DataError`` for a data set that cannot be had, ``OSError`` for a file that cannot be read.
        """
        digests = []
        for path, _ in self.files():
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def pinned(self) -> "Source":
        """The same; a data set of the hub at the commit that it has now. Raises ``DataError`` where none can be had."""
        return replace(self, place=str(HubSet.parse(self.place).pinned())) if self.of_hub else self

    def here(self) -> "Source | None":
        """The same, where it can be read without a network, or None. Raises ``DataError`` for a name that is none."""
        if self.of_hub:
            cached = HubSet.parse(self.place).cached()
            return replace(self, place=str(cached)) if cached else None
        return self if os.path.isfile(self.place) else None


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

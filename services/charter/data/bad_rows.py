"""What is done with rows that cannot be used: they stop the reading, or are left out, counted and written down."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from charter.data.errors import MOST_NAMED, BadRowError, DataError
from charter.data.rows import Row, Where

OnBadRow = Literal["stop", "skip"]
# Of rows of a file with the same mistake: places that are named beside the first.
_PLACES = 3


@dataclass
class _Mistake:
    """What is wrong with a row, and how many others of its file have the same mistake."""

    first: Where
    text: str
    places: list[str]
    others: int = 0

    def __str__(self) -> str:
        if not self.others:
            return f"{self.first}: {self.text}"
        named = ", ".join(self.places)
        unnamed = self.others - len(self.places)
        return f"{self.first}: {self.text} (the same: {named}{f' and {unnamed} more' if unnamed else ''})"


class BadRows:
    """The bad rows of one or more sources.

    With ``stop`` they are an error that names them, those of a file with the same mistake in one line. With ``skip``
    they are counted by reason in ``counts`` and written to the JSON lines of ``left_out`` with place, reason and
    content, where a file is given; it is replaced.
    """

    def __init__(self, on_bad_row: OnBadRow = "stop", left_out: Path | None = None) -> None:
        self.on_bad_row = on_bad_row
        self.left_out = left_out
        self.counts: Counter[str] = Counter()
        # By file and text, in the order of their first rows.
        self._mistakes: dict[tuple[str, str], _Mistake] = {}
        self._more = 0

    @property
    def stopped(self) -> bool:
        """Whether what is read is of no use any more: the rest is looked at only for further mistakes."""
        return bool(self._mistakes)

    def add(self, row: Row, error: BadRowError) -> None:
        """Note a bad row. Raises ``OSError`` when it cannot be written down."""
        if self.on_bad_row == "stop":
            self._note(row.where, str(error))
            return
        if self.left_out is not None:
            content = row.content.decode(errors="replace") if isinstance(row.content, bytes) else row.content
            line = {"file": row.where.file, "place": row.where.place, "reason": error.reason, "problem": str(error)}
            self.left_out.parent.mkdir(parents=True, exist_ok=True)
            with self.left_out.open("a" if self.counts else "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(line | {"row": content}, ensure_ascii=False, default=str) + "\n")
        self.counts[error.reason] += 1

    def _note(self, where: Where, text: str) -> None:
        known = self._mistakes.get((where.file, text))
        if known is not None:
            known.others += 1
            if len(known.places) < _PLACES:
                known.places.append(where.place)
        elif len(self._mistakes) < MOST_NAMED:
            self._mistakes[where.file, text] = _Mistake(where, text, [])
        else:
            self._more += 1

    def raise_if_stopped(self) -> None:
        """Raises ``DataError`` that names the rows."""
        if self._mistakes:
            mistakes, self._mistakes = self._mistakes, {}
            raise DataError([str(one) for one in mistakes.values()], self._more)


def said(counts: Mapping[str, int]) -> str:
    """Counts of rows in words: ``2 with an empty answer, 1 without a label``."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())

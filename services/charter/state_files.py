"""Files that Charter wrote for itself, read back: a damaged one is named, with what to do about it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from charter.jsonl import recover_lines

T = TypeVar("T")

# What reading a value of another form than was written raises.
_OF_ANOTHER_FORM = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class StateFileError(ValueError):
    """A file does not hold what Charter wrote; the message names it and says what to do."""

    def __init__(self, place: str, reason: Exception, advice: str) -> None:
        words = f"{reason} is missing" if isinstance(reason, KeyError) else str(reason)
        super().__init__(f"{place} is damaged: {words}. {advice}")


def read_json(path: Path, make: Callable[[Any], T], advice: str) -> T:
    """What ``make`` makes of a JSON file. ``advice`` is a sentence: what to do when it is damaged.

    Raises ``StateFileError``, ``OSError``.
    """
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except _OF_ANOTHER_FORM as error:
        raise StateFileError(str(path), error, advice) from error


def read_log(path: Path, make: Callable[[str], T], advice: str) -> list[T]:
    """What ``make`` makes of each line of a log; none when there is no file, and a last line cut off is removed.

    Raises ``StateFileError``, ``OSError``.
    """
    try:
        lines = recover_lines(path)
    except UnicodeDecodeError as error:
        raise StateFileError(str(path), error, advice) from error
    made: list[T] = []
    for number, line in enumerate(lines, start=1):
        try:
            made.append(make(line))
        except _OF_ANOTHER_FORM as error:
            raise StateFileError(f"{path}, line {number},", error, advice) from error
    return made

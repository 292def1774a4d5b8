"""Files that Charter wrote for itself, read back: a damaged one is named, with what to do about it."""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.json_format import ParseError

from charter.jsonl import recover_lines, whole_lines

T = TypeVar("T")

# What reading a value of another form than was written raises; protobuf's own error is no ``ValueError``.
_OF_ANOTHER_FORM = (ValueError, KeyError, TypeError, AttributeError, RecursionError, ParseError)


class StateFileError(ValueError):
    """A file does not hold what Charter wrote; the message names it and says what to do."""

    def __init__(self, place: str, reason: Exception, advice: str) -> None:
        words = f"{reason} is missing" if isinstance(reason, KeyError) else str(reason)
        super().__init__(f"{place} is damaged: {words}. {advice}")


class FolderBusyError(RuntimeError):
    """Another command works in this folder."""


@contextmanager
def alone_in(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """Work in a folder, which is made, while no other command does; what has another ``lock`` may.

    Raises ``FolderBusyError``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / lock).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderBusyError(f"another command works in {folder}: let it end") from error
        yield


def read_json(path: Path, make: Callable[[Any], T], advice: str) -> T:
    """What ``make`` makes of the value in a JSON file. Otherwise as ``read_text``."""
    return read_text(path, lambda text: make(json.loads(text)), advice)


def read_text(path: Path, make: Callable[[str], T], advice: str) -> T:
    """What ``make`` makes of the text of a file. ``advice`` is a sentence: what to do when it is damaged.

    Raises ``StateFileError``, ``OSError``.
    """
    try:
        return make(path.read_text(encoding="utf-8"))
    except _OF_ANOTHER_FORM as error:
        raise StateFileError(str(path), error, advice) from error


def read_log(path: Path, make: Callable[[str], T], advice: str, *, growing: bool = False) -> list[T]:
    """What ``make`` makes of each line of a log; none when there is no file, and a last line cut off is removed.

    ``growing``: another process may be writing that line, and it is let be. Raises ``StateFileError``, ``OSError``.
    """
    read = whole_lines if growing else recover_lines
    try:
        lines = read(path) if path.exists() else []
    except UnicodeDecodeError as error:
        raise StateFileError(str(path), error, advice) from error
    made: list[T] = []
    for number, line in enumerate(lines, start=1):
        try:
            made.append(make(line))
        except _OF_ANOTHER_FORM as error:
            raise StateFileError(f"{path}, line {number},", error, advice) from error
    return made

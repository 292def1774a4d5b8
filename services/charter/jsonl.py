"""Logs of JSON lines, which grow line by line. ``charter.data`` reads the files that people give.

Lines end at ``\\n`` alone. U+0085, U+2028 and U+2029, which ``str.splitlines`` takes for ends too, are ordinary
characters of a JSON text.
"""

import os
from collections.abc import Sequence
from pathlib import Path


def append_line(path: Path, text: str) -> None:
    """Add one line to a log and have it on the disk. ``text`` holds no line end."""
    append_lines(path, [text])


def append_lines(path: Path, texts: Sequence[str]) -> None:
    """As ``append_line``, several in one write."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(f"{text}\n" for text in texts))
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[str]:
    """The lines of a log, without a last one that has no end: it is still being written. Raises ``OSError``."""
    content = path.read_bytes()
    return _split(content[: content.rfind(b"\n") + 1])


def recover_lines(path: Path) -> list[str]:
    """The lines of a log, before more are added; none when there is no file.

    A last line without its end is what a process that was killed had begun to write: it is cut off the file.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return _split(whole)


def _split(whole: bytes) -> list[str]:
    return whole.decode("utf-8").split("\n")[:-1]

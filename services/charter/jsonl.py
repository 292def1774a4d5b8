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
    """As ``append_line``, several together. Raises ``OSError``, and then none of them is in the log."""
    left = memoryview("".join(f"{text}\n" for text in texts).encode())
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            # What goes on would else write behind a part of a line.
            file.truncate(end)
            raise


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

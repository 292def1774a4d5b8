"""Logs of JSON lines, which grow line by line."""

import resource
from pathlib import Path

import pytest
from charter.jsonl import append_line, append_lines, recover_lines, whole_lines

# Every character that str.splitlines takes for an end, but the one that is.
ODD = "a\x0bb\x0cc\x1cd\x1ee\x85f\u2028g\u2029h"


def test_a_log_keeps_its_lines_and_loses_the_unfinished_one(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert recover_lines(log) == []
    append_line(log, ODD)
    append_line(log, "second")
    with log.open("ab") as file:
        file.write("half \u2028 of a li\xe9".encode()[:-1])
    assert whole_lines(log) == [ODD, "second"]
    assert recover_lines(log) == [ODD, "second"]
    append_line(log, "third")
    assert whole_lines(log) == [ODD, "second", "third"]


def test_what_does_not_fit_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    """A limit of a file's size stands in for a disk that is full."""
    log = tmp_path / "log.jsonl"
    append_lines(log, ["first", "second"])
    whole = log.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append_lines(log, ["third", "x" * 100])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.read_bytes() == whole
    append_lines(log, ["fourth"])
    assert recover_lines(log) == ["first", "second", "fourth"]

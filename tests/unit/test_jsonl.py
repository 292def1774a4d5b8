"""Logs of JSON lines, which grow line by line."""

from pathlib import Path

from charter.jsonl import append_line, recover_lines, whole_lines

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

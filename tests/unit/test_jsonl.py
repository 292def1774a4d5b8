"""The one reader of JSON lines, and the logs that grow line by line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from charter.jsonl import RowError, append_line, lines, read_records, recover_lines, whole_lines

# Every character that str.splitlines takes for an end, but the one that is.
ODD = "a\x0bb\x0cc\x1cd\x1ee\x85f\u2028g\u2029h"
LAYOUTS = ("plain", "gz", "gz under another name", "with a byte order mark", "with carriage returns")


def write(folder: Path, content: str, layout: str = "plain") -> Path:
    data = content.encode()
    if layout == "with a byte order mark":
        data = b"\xef\xbb\xbf" + data
    if layout == "with carriage returns":
        data = data.replace(b"\n", b"\r\n")
    path = folder / ("p.jsonl.gz" if layout == "gz" else "p.jsonl")
    path.write_bytes(gzip.compress(data) if layout.startswith("gz") else data)
    return path


def text_of(record: dict[str, Any]) -> str:
    text: str = record["text"]
    if text == "refuse":
        raise ValueError("text must not be refuse")
    return text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lines_end_at_newlines_alone(tmp_path: Path, layout: str) -> None:
    records = [{"text": ODD}, {"text": "next"}]
    content = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path = write(tmp_path, content, layout)
    assert read_records(path, text_of) == [json.loads(f'"{ODD}"', strict=False), "next"]
    assert [line.number for line in lines(path)] == [1, 3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bad_line_is_named_up_to_a_bound(tmp_path: Path, layout: str) -> None:
    bad = ["{", "[1]", '{"text": NaN}', '{"text": "refuse"}', "[" * 100_000]
    path = write(tmp_path, "\n".join(['{"text": "good"}', *bad, *["7"] * 20]), layout)
    with pytest.raises(RowError) as caught:
        read_records(path, text_of)
    told = str(caught.value).split("\n")
    places = [f"{path}, line {number}: " for number in range(2, 12)]
    assert [line.startswith(place) for line, place in zip(told[:-1], places, strict=True)] == [True] * 10
    for number, words in enumerate(("not valid JSON", "must be a JSON object", "NaN is not", "must not be refuse")):
        assert words in told[number]
    assert told[-1] == "and 15 more"
    assert len(caught.value.problems) == 25


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(RowError, match=r"p\.jsonl, line 2: not valid JSON: .*utf-8"):
        read_records(path, text_of)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:10] + b"\xff" * 40, lambda data: data[:5]]
)
def test_a_damaged_compressed_file_is_named(tmp_path: Path, damage: Any) -> None:
    path = write(tmp_path, '{"text": "a"}\n' * 5, "gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RowError, match=r"p\.jsonl\.gz, after line \d+: the compressed file is damaged"):
        read_records(path, text_of)


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

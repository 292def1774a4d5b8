"""Files of every form give the same rows, and say where a bad one stands."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from charter.data import json_text
from charter.data.bad_rows import BadRows
from charter.data.errors import BadRowError, DataError
from charter.data.rows import Row, rows_of
from charter.data.sources import Source, read

from tests.unit.data.files import write_rows

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


def text(row: Row) -> list[str]:
    return [row.fields()["text"]]


def read_texts(path: Path, bad: BadRows | None = None) -> list[str]:
    return list(read(Source(str(path)), text, bad or BadRows()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lines_end_at_newlines_alone(tmp_path: Path, layout: str) -> None:
    content = "\n\n".join(json.dumps({"text": one}, ensure_ascii=False) for one in (ODD, "next"))
    path = write(tmp_path, content, layout)
    assert read_texts(path) == [ODD, "next"]
    assert [row.where.number for row in rows_of(path, "p")] == [1, 3]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("p.jsonl", "line"),
        ("p.jsonl.gz", "line"),
        ("p.json", "item"),
        ("p.json.gz", "item"),
        ("p.parquet", "row"),
        ("p.csv", "row"),
        ("P.CSV.gz", "row"),
    ],
)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str, unit: str) -> None:
    rows = [{"text": f'{number}, {ODD} "quoted"\nand more' * 30, "other": "x"} for number in range(300)]
    path = write_rows(tmp_path / name, rows)
    found = list(rows_of(path, "shown"))
    assert [row.fields() for row in found] == rows
    assert [str(row.where) for row in found[:2]] == [f"shown, {unit} 1", f"shown, {unit} 2"]


def test_a_remark_before_the_columns_of_a_csv_file_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("# dataset_version,,\ntext,other\na,b\n")
    assert [row.fields() for row in rows_of(tmp_path / "p.csv", "p")] == [{"text": "a", "other": "b"}]


def test_a_json_list_may_be_called_json_lines(tmp_path: Path) -> None:
    """As the red-team attempts of HH-RLHF are."""
    path = write_rows(tmp_path / "p.json", [{"text": "a"}, {"text": "b"}]).rename(tmp_path / "p.jsonl")
    assert [str(row.where) for row in rows_of(path, "p")] == ["p, item 1", "p, item 2"]


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "a"}\n\n{"text": "b"}\n').rename(tmp_path / "p.json")
    assert [str(row.where) for row in rows_of(path, "p")] == ["p, line 1", "p, line 3"]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "content", ["[]", " [ ] ", '[{"a": 12}, {"b": [1, "],["]}]', "[12,34 ,\n56]", '[true,"x",null]']
)
def test_a_json_list_may_break_off_between_pieces_anywhere(
    content: str, piece: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(json_text, "_PIECE", piece)
    (tmp_path / "p.json").write_text(content)
    with (tmp_path / "p.json").open() as file:
        assert list(json_text.items(file)) == json.loads(content)


@pytest.mark.parametrize(
    "content", ["[1 2]", "[1,]x", "[1", "[1,", '[{"a": }]', "[,1]", "[1,,2]", "7", '"x"', "", "[NaN]"]
)
def test_what_is_no_json_list_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(DataError, match=r"p\.json, after item \d: not a JSON list"):
        list(rows_of(tmp_path / "p.json", "p.json"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bad_line_is_named_up_to_a_bound(tmp_path: Path, layout: str) -> None:
    bad = ["{", "[1]", '{"text": NaN}', "[" * 100_000, *(f'{{"text": {number}}}' for number in range(21))]
    path = write(tmp_path, "\n".join(['{"text": "good"}', *bad]), layout)
    with pytest.raises(DataError) as caught:
        list(read(Source(str(path)), number_of, BadRows()))
    told = str(caught.value).split("\n")
    assert [line.startswith(f"{path}, line {number}: ") for number, line in enumerate(told[:-1], start=2)] == [
        True
    ] * 10
    for number, words in enumerate(("not valid JSON", "must be a JSON object", "NaN is not")):
        assert words in told[number]
    assert told[-1] == "and 15 more"
    assert (len(caught.value.problems), caught.value.more) == (10, 15)
    both = DataError.of([caught.value, DataError(["one of another file"])])
    assert (len(both.problems), both.more) == (10, 16)


def number_of(row: Row) -> list[str]:
    """A mistake that is another in each row."""
    value = row.fields()["text"]
    if value == "good":
        return ["good"]
    raise BadRowError("not wanted", f"text must not be {value}")


def test_one_mistake_in_many_rows_is_said_once_with_its_count(tmp_path: Path) -> None:
    """As in a file of another kind: its every row is wrong in the same way."""
    path = write(tmp_path, "\n".join(['{"text": "good"}', "7", "{", *["7"] * 1000]))
    with pytest.raises(DataError) as caught:
        read_texts(path)
    first, other = str(caught.value).split("\n")
    assert first.startswith(f"{path}, line 2: must be a JSON object")
    assert first.endswith("(the same: line 4, line 5, line 6 and 997 more)")
    assert other.startswith(f"{path}, line 3: ")
    assert "the same" not in other


def test_few_rows_with_one_mistake_are_all_named_and_each_file_by_itself(tmp_path: Path) -> None:
    bad = BadRows()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError) as caught:
            read_texts(write(tmp_path / name, "7\n7\n"), bad)
        assert str(caught.value) == f"{tmp_path / name / 'p.jsonl'}, line 1: must be a JSON object (the same: line 2)"


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: not valid JSON: .*utf-8"):
        read_texts(path)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-9], lambda data: data[:10] + b"\xff" * 40, lambda data: data[:5]],
    ids=["cut", "other bytes", "cut early"],
)
def test_a_damaged_compressed_file_is_an_error_even_where_bad_rows_are_skipped(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path, '{"text": "a"}\n' * 5, "gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"p\.jsonl\.gz: the compressed file is damaged"):
        read_texts(path, BadRows("skip"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.parquet", b"PAR1 and then nothing", "is not a readable Parquet file"),
        ("p.csv", b"a,b\n1,\xff\n", "not readable as CSV"),
        ("p.csv", b'a,b\n1,"x"y\n', "not readable as CSV"),
        ("p.json", b'{\n "data": []\n}', "must be a JSON list of objects, or one object a line"),
        ("p.xlsx", b"", r"the name must end in one of \.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{words}"):
        read_texts(tmp_path / name, BadRows("skip"))


@pytest.mark.parametrize(("name", "words"), [("none.jsonl", "there is no such file"), ("d.jsonl", "it is a folder")])
def test_a_file_that_is_none_is_said_in_words(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(DataError, match=f"cannot read .*{name}: {words}"):
        read_texts(tmp_path / name)


def test_skipped_rows_are_counted_and_written_down(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "a"}\n{"text\n[1]\n{"text": "b"}\n[2]\n')
    report = tmp_path / "left_out.jsonl"
    report.write_text("of an earlier time\n")
    bad = BadRows("skip", report)
    assert read_texts(path, bad) == ["a", "b"]
    assert bad.counts == {"not valid JSON": 1, "not a JSON object": 2}
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(line["place"], line["reason"], line["row"]) for line in lines] == [
        ("line 2", "not valid JSON", '{"text\n'),
        ("line 3", "not a JSON object", "[1]\n"),
        ("line 5", "not a JSON object", "[2]\n"),
    ]
    assert {line["file"] for line in lines} == {str(path)}


def test_behind_a_bad_row_nothing_is_made_where_it_stops(tmp_path: Path) -> None:
    made: list[str] = []
    with pytest.raises(DataError, match="line 2"):
        made += read(Source(str(write(tmp_path, '{"text": "a"}\n7\n{"text": "b"}\n'))), text, BadRows())
    path = write(tmp_path, '{"text": "a"}\n7\n{"text": "b"}\n')
    found = read(Source(str(path)), text, BadRows())
    assert next(found) == "a"
    with pytest.raises(DataError):
        next(found)


def test_a_column_stands_behind_the_source(tmp_path: Path) -> None:
    assert Source.parse("a/b.jsonl#question") == Source("a/b.jsonl", "question")
    assert Source.parse("a/b.jsonl") == Source("a/b.jsonl", "")
    path = write(tmp_path, "").rename(tmp_path / "a#b.jsonl")
    assert Source.parse(str(path)) == Source(str(path))
    assert Source.parse(f"{path}#c") == Source(str(path), "c")


def test_a_long_json_list_is_read_in_pieces(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.json", [{"text": "x" * 1000}] * 3000)
    with path.open() as file:
        assert next(json_text.items(file)) == {"text": "x" * 1000}
        assert file.read(1) == "x"
        assert len(file.read()) > 1_900_000


def test_a_long_parquet_file_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    group = pa.table({"text": ["x" * 1000] * 1000})
    with pq.ParquetWriter(path, group.schema, compression="none", use_dictionary=False) as writer:
        for _ in range(20):
            writer.write_table(group)
    tracemalloc.start()
    try:
        assert sum(1 for _ in rows_of(path, "p")) == 20_000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Some of the groups of a megabyte, and not all twenty.
    assert most < 6_000_000

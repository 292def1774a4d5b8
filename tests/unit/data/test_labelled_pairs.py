"""Labelled pairs: the file format and its errors, and how pairs are made from scores and from good answers."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.errors import DataError
from charter.data.pairs.labelled import read_labelled_pairs, write_labelled_pairs
from charter.evaluation.judge.labelled_pairs import harmlessness_pairs, helpfulness_pairs, split_by_group
from charter.held_out import prompt_key

ANSWERS = Path(__file__).parents[3] / "examples" / "labelled" / "helpful_answers.jsonl"


def test_both_forms_of_a_line_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": "Hi", "answer_a": "Hello", "answer_b": "Go", "label": "a", "dimension": "helpful"},
        {
            "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
            "answer_a": "Hello",
            "answer_b": "",
            "label": 0.25,
            "group": "greeting",
        },
    ]
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    first, second = read_labelled_pairs(file)
    assert (first.prompt, first.label, first.dimension) == ((ChatMessage("user", "Hi"),), 1.0, "helpful")
    assert (second.prompt[0].role, second.label, second.group) == ("system", 0.25, "greeting")
    assert first.group
    write_labelled_pairs(tmp_path / "again.jsonl", [first, second])
    assert read_labelled_pairs(tmp_path / "again.jsonl") == [first, second]


GOOD = {"prompt": "Hi", "answer_a": "x", "answer_b": "y", "label": "b"}


WITHOUT_PROMPT = {name: value for name, value in GOOD.items() if name != "prompt"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON: Expecting"),
        ("[1]", "line 2: must be a JSON object"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "label"} | {"lable": 1}), "line 2: .*needs one of label"),
        (
            json.dumps(GOOD | {"label": 1.5}),
            r"line 2: label must be answer_a or answer_b, a or b, .* or P\(answer_a is",
        ),
        (json.dumps(GOOD | {"label": True}), "line 2: label must be"),
        (json.dumps(GOOD | {"answer_a": 3}), "line 2: answer_a must be text, not a number"),
        (
            json.dumps({k: v for k, v in GOOD.items() if k != "answer_b"}),
            "line 2: needs chosen and rejected, two answers",
        ),
        (json.dumps(WITHOUT_PROMPT), "line 2: has two answers and no prompt: needs one of prompt"),
        (json.dumps(WITHOUT_PROMPT | {"messages": []}), "line 2: has no turn to answer"),
        (json.dumps(WITHOUT_PROMPT | {"messages": [{"role": "boss"}]}), r"line 2: messages\[0\].role is 'boss'"),
        ("\udcff", "line 2: not valid JSON: 'utf-8' codec"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes((json.dumps(GOOD) + "\n").encode() + line.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_labelled_pairs(file)


TURNS = [{"role": "user", "content": "Hi"}]
ANSWERED = {
    name: [*TURNS, {"role": "assistant", "content": text}] for name, text in (("chosen", "x"), ("rejected", "y"))
}
IMPORTED: dict[str, dict[str, Any]] = {
    "ultrafeedback": ANSWERED,
    "hh-rlhf": {"chosen": "\n\nHuman: Hi\n\nAssistant: x", "rejected": "\n\nHuman: Hi\n\nAssistant: y"},
    "prompt and answers": {"prompt": "Hi", "chosen": "x", "rejected": "y"},
    "exported": {
        "prompt": TURNS,
        "answer_a": "x",
        "answer_b": "y",
        "outcome": "PREFERRED_A",
        "probability_a": 1.0,
        "source": "HUMAN",
        "split": "TRAIN",
    },
}


@pytest.mark.parametrize("layout", list(IMPORTED))
def test_every_layout_that_is_imported_is_read(tmp_path: Path, layout: str) -> None:
    file = tmp_path / "pairs.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(IMPORTED[layout]).encode()))
    (pair,) = read_labelled_pairs(file)
    better, worse = (pair.answer_a, pair.answer_b) if pair.label == 1.0 else (pair.answer_b, pair.answer_a)
    assert (pair.prompt, better, worse) == ((ChatMessage("user", "Hi"),), "x", "y")
    assert pair.group == prompt_key(pair.prompt)


def test_parquet_is_read_and_what_is_of_no_use_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    rows = [IMPORTED["prompt and answers"], {"prompt": "Ho", "chosen": "z", "rejected": " "}]
    pq.write_table(pa.Table.from_pylist(rows), file)
    bad = BadRows("skip")
    assert [pair.prompt[0].content for pair in read_labelled_pairs(file, bad)] == ["Hi"]
    assert bad.counts == {"with an empty answer": 1}
    with pytest.raises(DataError, match="row 2: the answer of rejected is empty"):
        read_labelled_pairs(file)
    pq.write_table(pa.Table.from_pylist([{"prompt": "Hi", "chosen": 1, "rejected": 2}]), file)
    with pytest.raises(DataError, match="row 1: chosen and rejected must both be text"):
        read_labelled_pairs(file)


def test_a_label_that_contradicts_its_outcome_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(IMPORTED["exported"] | {"probability_a": 0.2}))
    with pytest.raises(DataError, match="contradicts the outcome"):
        read_labelled_pairs(tmp_path / "pairs.jsonl")


def test_a_file_without_pairs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no labelled pairs"):
        read_labelled_pairs(tmp_path / "empty.jsonl")


def test_helpfulness_pairs_worsen_each_answer_in_seven_ways() -> None:
    pairs = helpfulness_pairs(ANSWERS)
    assert pairs == helpfulness_pairs(ANSWERS)
    prompts = [json.loads(line) for line in ANSWERS.read_text().splitlines()]
    assert len(pairs) == 7 * len(prompts)
    good = {record["prompt"]: record["answer"] for record in prompts}
    for pair in pairs:
        better, worse = (pair.answer_a, pair.answer_b) if pair.label == 1.0 else (pair.answer_b, pair.answer_a)
        assert better == good[pair.prompt[0].content]
        assert worse != better
        if pair.source == "words shuffled":
            assert sorted(worse.split()) == sorted(better.split())
        if pair.source == "cut off after a quarter":
            assert better.startswith(worse[:20])
            assert len(worse) < len(better) / 2
        if pair.source == "good answer to another prompt":
            assert worse in good.values()
    # Which answer is called A is a matter of chance.
    assert 0.4 < sum(pair.label for pair in pairs) / len(pairs) < 0.6


def test_a_split_keeps_prompts_together() -> None:
    pairs = helpfulness_pairs(ANSWERS)
    one, other = split_by_group(pairs)
    assert not {pair.group for pair in one} & {pair.group for pair in other}
    assert sorted(len(half) for half in (one, other))[0] > len(pairs) / 3


def write_scores(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    with path.open("w", newline="") as file:
        file.write("# versions,,,\n")
        writer = csv.writer(file)
        writer.writerow(["objective", "assistant_response", "human_score_1", "human_score_2"])
        writer.writerows(rows)


def test_harmlessness_pairs_come_from_scores_that_differ(tmp_path: Path) -> None:
    write_scores(
        tmp_path / "one.csv",
        [("p", "safe", "0", "0"), ("p", "worst", "1", "1"), ("p", "middling", "0.25", "0.5"), ("q", "alone", "1", "")],
    )
    # The same answer in another file: its score is the mean.
    write_scores(tmp_path / "two.csv", [("p", "safe", "0.2", "")])
    pairs = harmlessness_pairs(tmp_path)
    found = {(pair.answer_a, pair.answer_b) if pair.label == 1.0 else (pair.answer_b, pair.answer_a) for pair in pairs}
    # 0.1 against 1 and 0.375 against 1; 0.1 and 0.375 are too close.
    assert found == {("safe", "worst"), ("middling", "worst")}
    assert {pair.dimension for pair in pairs} == {"harmless"}


def test_no_prompt_rules_the_harmlessness_pairs(tmp_path: Path) -> None:
    rows = [("p", f"safe {i}", "0", "") for i in range(5)] + [("p", f"bad {i}", "1", "") for i in range(5)]
    write_scores(tmp_path / "one.csv", rows)
    assert len(harmlessness_pairs(tmp_path)) == 8
    assert len(harmlessness_pairs(tmp_path, most_per_prompt=100)) == 25
    with pytest.raises(FileNotFoundError, match="holds no CSV"):
        harmlessness_pairs(tmp_path / "none")

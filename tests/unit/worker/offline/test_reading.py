"""Comparisons and thumbs as token ids: what is learned, what is left out and why, and the answers to other prompts."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.held_out import prompt_key
from charter.inference.chat_template import ChatTokenizer
from charter.storage.comparison_files import write_comparisons
from charter.v1 import types_pb2
from charter.worker.errors import SpecError
from charter.worker.offline.comparisons import read_comparisons
from charter.worker.offline.items import ComparedAnswers, RatedAnswer
from charter.worker.offline.thumbs import read_thumbs, with_other_answers
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.supervised.corpus import SourceItems

from tests.support.comparisons import comparison

MOST = 80


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(str(tiny_model))


@pytest.fixture
def reader(tokenizer: ChatTokenizer) -> ConversationReader:
    return ConversationReader(tokenizer, MOST, last_only=True)


def write(path: Path, rows: list[dict[str, Any]]) -> Mapping[str, str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"it": str(path)}


def pairs_of(one: SourceItems) -> list[ComparedAnswers]:
    return [item for item in (*one.train, *one.held_out) if isinstance(item, ComparedAnswers)]


def rated_of(one: SourceItems) -> list[RatedAnswer]:
    return [item for item in (*one.train, *one.held_out) if isinstance(item, RatedAnswer)]


def test_both_answers_stand_behind_the_same_prompt(
    tmp_path: Path, tokenizer: ChatTokenizer, reader: ConversationReader
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    row = {"prompt": turns, "answer_a": "yes", "answer_b": "no", "label": 0.7}
    (pair,) = pairs_of(read_comparisons(write(tmp_path / "p.jsonl", [row]), reader, 0.2)["it"])
    assert pair.probability_a == 0.7
    for one, text in zip(pair.sequences, ("yes", "no"), strict=True):
        # Only the last answer is learned, with its end of turn.
        assert tokenizer.decode(one.targets) == text
        assert one.targets[-1] in tokenizer.stop_ids
        whole = tokenizer.render([ChatMessage(turn["role"], turn["content"]) for turn in turns])  # type: ignore[arg-type]
        assert list(one.ids[: one.states[0] + 1]) == list(tokenizer.encode(whole))


@pytest.mark.parametrize("read", [read_comparisons, read_thumbs])
def test_rows_that_are_skipped_are_left_out_and_counted(
    tmp_path: Path, reader: ConversationReader, read: Callable[..., Mapping[str, SourceItems]]
) -> None:
    """Rows of both layouts, and one of neither."""
    rows = [
        {"prompt": f"{i}", "chosen": "x", "rejected": "y"}
        if read is read_comparisons
        else {"prompt": f"{i}", "completion": "x", "label": i < 2}
        for i in range(4)
    ]
    source = write(tmp_path / "it.jsonl", [*rows, {"else": 1}])
    found = read(source, reader, 0.0, (), BadRows("skip"))["it"].left_out
    assert (found.items, found.kinds) == (5, {"of no known layout": 1})


def test_what_is_no_preference_is_left_out_and_counted(tmp_path: Path, reader: ConversationReader) -> None:
    good = {"chosen": "x", "rejected": "y"}
    rows: list[dict[str, Any]] = [
        {"prompt": "fine", **good},
        {"prompt": "tie", "answer_a": "x", "answer_b": "y", "label": 0.5},
        {"prompt": "nearly", "answer_a": "x", "answer_b": "y", "label": 0.5000001},
        {"prompt": "same", "chosen": "x", "rejected": "x"},
        {"prompt": "long", "chosen": "x", "rejected": "y" * MOST},
        {"prompt": "asked later", **good},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "asked later"}], **good},
    ]
    evaluated = {prompt_key((ChatMessage("user", "asked later"),))}
    found = read_comparisons(write(tmp_path / "p.jsonl", rows), reader, 0.2, evaluated)["it"]
    assert found.left_out.kinds == {"tie": 2, "identical": 1, "too_long": 1, "evaluated": 2}
    assert found.labels == {"IMPORTED": 1}


def test_labels_without_an_answer_and_what_labels_hold_out(tmp_path: Path, reader: ConversationReader) -> None:
    stored = [comparison(f"Yes {number}", source=types_pb2.LABEL_SOURCE_HUMAN) for number in range(6)]
    for number, one in enumerate(stored):
        one.prompt[0].content = f"Question {number}?"
    stored[0].split = stored[1].split = types_pb2.SPLIT_HELD_OUT
    stored[2].outcome = types_pb2.OUTCOME_UNAVAILABLE
    stored[2].ClearField("probability_a")
    write_comparisons(tmp_path / "s.parquet", stored)
    found = read_comparisons({"it": str(tmp_path / "s.parquet")}, reader, 0.0)["it"]
    assert found.left_out.kinds == {"unavailable": 1}
    assert (len(found.train), len(found.held_out), found.labels) == (3, 2, {"HUMAN": 5})
    assert {item.group for item in found.held_out} == {
        prompt_key((ChatMessage("user", f"Question {number}?"),)) for number in (0, 1)
    }


def test_nothing_to_learn_from_is_an_error_that_says_why(tmp_path: Path, reader: ConversationReader) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "same", "chosen": "x", "rejected": "x"}]
    with pytest.raises(SpecError, match=r"nothing can be learned from .*: 1 of 1 left out: 1 identical"):
        read_comparisons(write(tmp_path / "p.jsonl", rows), reader, 0.2)
    for good, only, other in ((True, "up", "down"), (False, "down", "up")):
        rows = [{"prompt": f"p {number}", "completion": "x", "label": good} for number in range(3)]
        with pytest.raises(SpecError, match=rf"all \d that it may learn from have a thumb {only}: add some .* {other}"):
            read_thumbs(write(tmp_path / "t.jsonl", rows), reader, 0.2)


def test_every_thumb_gets_an_answer_to_another_prompt(
    tmp_path: Path, tokenizer: ChatTokenizer, reader: ConversationReader
) -> None:
    # A short prompt with long answers, and a long one with short answers.
    rows = [
        {
            "prompt": "p" * (1 + 30 * (number // 2)),
            "completion": f"{number}" * (40, 8)[number // 2],
            "label": number % 2,
        }
        for number in range(4)
    ]
    read = read_thumbs(write(tmp_path / "t.jsonl", rows), reader, 0.0)
    assert read["it"].verdicts == {"up": 2, "down": 2}
    found = rated_of(with_other_answers(read, MOST, seed=1)["it"])
    own = {tuple(item.sequences[0].targets): item.group for item in found}
    cut = 0
    for item in found:
        first, second = item.sequences
        prompt = first.ids[: first.states[0] + 1]
        assert list(second.ids[: second.states[0] + 1]) == list(prompt)
        assert list(second.ids[len(prompt) :]) == list(second.targets[:-1])
        # Of another prompt, whole or as much of it as there is room for.
        (whole,) = [answer for answer in own if answer[: len(second.targets)] == tuple(second.targets)]
        assert own[whole] != item.group
        cut += len(second.targets) < len(whole)
        assert len(second.ids) == MOST if len(second.targets) < len(whole) else len(second.ids) <= MOST
        # What is counted is what is learned.
        assert item.targets == len(first.targets)
    assert cut
    assert [one.sequences for one in rated_of(with_other_answers(read, MOST, seed=1)["it"])] == [
        one.sequences for one in found
    ]
    with pytest.raises(SpecError, match="all that there are are to one"):
        with_other_answers(read_thumbs(write(tmp_path / "o.jsonl", rows[:2]), reader, 0.0), MOST, seed=1)

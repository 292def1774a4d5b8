"""Conversations and texts in the layouts in which data sets of the field come; what they say is made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.conversations import conversations
from charter.data.errors import DataError
from charter.data.texts import texts

from tests.unit.data.files import write_rows

ASKED = [{"role": "user", "content": "Is tea hot?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Yes."}]
PLAIN = [("user", "Is tea hot?"), ("assistant", "Yes.")]
SYSTEM = ("system", "Be brief.")

LAYOUTS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    # HuggingFaceH4/ultrachat_200k, no_robots.
    "messages beside a prompt": ({"prompt": "Is tea hot?", "prompt_id": "1", "messages": ANSWERED}, PLAIN),
    "extra keys": ({"messages": [turn | {"name": "x", "tool_calls": None, "weight": 1} for turn in ANSWERED]}, PLAIN),
    "parts": (
        {"messages": [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "Y"}, "es", {"text": "."}]}]},
        PLAIN,
    ),
    "developer": ({"messages": [{"role": "developer", "content": "Be brief."}, *ANSWERED]}, [SYSTEM, *PLAIN]),
    "other names of keys": (
        {"messages": [{"role": "User", "text": "Is tea hot?"}, {"from": "model", "content": "Yes.", "value": None}]},
        PLAIN,
    ),
    "parts of responses": (
        {"messages": [*ASKED, {"role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]}]},
        PLAIN,
    ),
    "empty system": ({"messages": [{"role": "system", "content": ""}, *ANSWERED]}, PLAIN),
    # Open-Orca/SlimOrca, teknium/OpenHermes-2.5.
    "sharegpt": (
        {
            "id": "x_0",
            "conversations": [
                {"from": "system", "value": "Be brief.", "weight": None},
                {"from": "human", "value": "Is tea hot?", "weight": 0.0},
                {"from": "gpt", "value": "Yes.", "weight": 1.0},
            ],
        },
        [SYSTEM, *PLAIN],
    ),
    "sharegpt with a system column": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Is tea hot?"}, {"from": "gpt", "value": "Yes."}],
        },
        [SYSTEM, *PLAIN],
    ),
    "argilla": (
        {
            "id": "1",
            "fields": {"prompt": "Is tea hot?", "response": "Yes.", "note": None},
            "responses": {"quality": [{"value": "good", "user_id": "u", "status": "submitted"}]},
        },
        PLAIN,
    ),
    "label studio": ({"id": 1, "data": {"messages": ANSWERED}, "annotations": [{"id": 7, "result": []}]}, PLAIN),
    "messages as JSON text": ({"messages": json.dumps(ANSWERED)}, PLAIN),
    # tatsu-lab/alpaca.
    "alpaca": (
        {"instruction": "Say it in French.", "input": "tea", "output": "thé", "text": "Below is an instruction …"},
        [("user", "Say it in French.\n\ntea"), ("assistant", "thé")],
    ),
    "alpaca without input": ({"instruction": "Is tea hot?", "input": "", "output": "Yes."}, PLAIN),
    # databricks/databricks-dolly-15k.
    "dolly": (
        {"instruction": "When?", "context": "It was 1900.", "response": "1900.", "category": "closed_qa"},
        [("user", "When?\n\nIt was 1900."), ("assistant", "1900.")],
    ),
    "alpaca with earlier turns": (
        {"instruction": "And cold?", "input": "", "output": "No.", "history": [["Is tea hot?", "Yes."]]},
        [*PLAIN, ("user", "And cold?"), ("assistant", "No.")],
    ),
    "a question about a text": (
        {"context": "It was 1900.", "question": "When?", "answer": "1900."},
        [("user", "When?\n\nIt was 1900."), ("assistant", "1900.")],
    ),
    # Open-Orca/OpenOrca, openai/gsm8k.
    "orca": (
        {"id": "1", "system_prompt": "Be brief.", "question": "Is tea hot?", "response": "Yes."},
        [SYSTEM, *PLAIN],
    ),
    "question and answer": ({"question": "Is tea hot?", "answer": "Yes."}, PLAIN),
    "prompt and completion": ({"prompt": "Is tea hot?", "completion": "Yes."}, PLAIN),
    "prompt and completion as turns": ({"prompt": ASKED, "completion": ANSWERED[1:]}, PLAIN),
}


def read(path: Path, bad: BadRows | None = None) -> list[list[tuple[str, str]]]:
    return [[(turn.role, turn.content) for turn in one.messages] for one in conversations(str(path), bad)]


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_layouts_of_conversations(tmp_path: Path, layout: str, ending: str) -> None:
    row, expected = LAYOUTS[layout]
    if layout.startswith("parts") and ending == "parquet":
        pytest.skip("a column of Parquet is of one type")
    assert read(write_rows(tmp_path / f"c.{ending}", [row])) == [expected]


def test_a_named_column_holds_turns_or_a_dialogue(tmp_path: Path) -> None:
    row = {"chosen": "\n\nHuman: Is tea hot?\n\nAssistant: Yes.", "rejected": "", "turns": ANSWERED, "messages": []}
    path = write_rows(tmp_path / "c.jsonl", [row])
    for column in ("chosen", "turns"):
        (one,) = conversations(f"{path}#{column}")
        assert one.messages == (ChatMessage("user", "Is tea hot?"), ChatMessage("assistant", "Yes."))
        assert str(one.where) == f"{path}, line 1"
    with pytest.raises(DataError, match="line 1: has no column text; it has chosen, rejected, turns, messages"):
        list(conversations(f"{path}#text"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is tea hot?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": ASKED, "chosen": ANSWERED[1:], "rejected": []},
        {"prompt": "Is tea hot?", "chosen": ANSWERED, "rejected": []},
        {"prompt": ASKED, "chosen": json.dumps(ANSWERED), "rejected": []},
    ],
)
def test_a_named_answer_stands_behind_the_request_beside_it(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write_rows(tmp_path / "c.jsonl", [row])
    (one,) = conversations(f"{path}#chosen")
    assert one.messages == (ChatMessage("user", "Is tea hot?"), ChatMessage("assistant", "Yes."))


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"messages": ASKED}, "without a turn of the assistant", ""),
        ({"messages": ANSWERED[1:]}, "begun by the assistant", ""),
        ({"messages": []}, "without a turn of the assistant", ""),
        ({"messages": [*ASKED, {"role": "assistant", "content": " \n"}]}, "with an empty turn", ""),
        (
            {"messages": [*ANSWERED, {"role": "tool", "content": "1"}]},
            "a turn of an unknown role",
            r"messages\[2\].role is 'tool'; known roles are system, developer, user",
        ),
        ({"messages": [{"content": "x"}]}, "a turn without a role", r"messages\[0\] has no role; it has content"),
        ({"messages": [*ASKED, {"role": "assistant", "content": None}]}, "not text", "must be text, not null"),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}]},
            "a turn that calls a tool",
            "",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "a part that is not text",
            r"messages\[0\].content\[0\] is 'image_url', not text",
        ),
        ({"messages": "Is tea hot?"}, "not a list of turns", "messages must be a list of turns, not text"),
        ({"messages": ["Is tea hot?"]}, "not a list of turns", r"messages\[0\] must be a turn with role and content"),
        ({"prompt": "Is tea hot?"}, "of no known layout", "it has prompt. FILE#COLUMN names another column"),
        ({"prompt": 3, "completion": "x"}, "not text", "prompt must be text, not a number"),
        ({"prompt": "x", "completion": "\ud800"}, "not valid Unicode", "completion is not valid Unicode"),
    ],
)
def test_a_bad_row_has_a_reason(tmp_path: Path, row: dict[str, Any], reason: str, words: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"messages": ANSWERED}) + "\n" + json.dumps(row) + "\n")
    bad = BadRows("skip")
    assert read(path, bad) == [PLAIN]
    assert bad.counts == {reason: 1}
    with pytest.raises(DataError, match=f"c.jsonl, line 2: .*{words}"):
        read(path)


def test_texts_are_files_or_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One\n\ntwo\u2028three\n")
    (found,) = texts(str(tmp_path / "a.txt"))
    assert (found.text, str(found.where)) == ("One\n\ntwo\u2028three\n", f"{tmp_path}/a.txt, document 1")
    for name in ("t.jsonl", "t.jsonl.gz", "t.parquet"):
        path = write_rows(tmp_path / name, [{"text": "a", "content": "x"}, {"text": "b", "content": "y"}])
        assert [one.text for one in texts(str(path))] == ["a", "b"]
        assert [one.text for one in texts(f"{path}#content")] == ["x", "y"]


def test_texts_that_are_none_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"bytes\.txt, document 1: is not UTF-8: .* at byte 3"):
        list(texts(str(tmp_path / "bytes.txt")))
    path = write_rows(tmp_path / "t.jsonl", [{"text": " "}, {"body": "x"}, {"text": "a"}])
    bad = BadRows("skip")
    assert [one.text for one in texts(str(path), bad)] == ["a"]
    assert bad.counts == {"without a word": 1, "without text": 1}
    with pytest.raises(DataError, match="is plain text: rows with columns are needed here"):
        list(conversations(str(tmp_path / "bytes.txt")))

"""Prompts from where people have them; what they say is made up."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from charter.data.bad_rows import BadRows
from charter.data.errors import DataError
from charter.data.prompts import read_prompts

from tests.unit.data.files import write_rows

USER = [("user", "Is tea hot?")]
SYSTEM = ("system", "Be brief.")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is tea hot?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Always?"},
]
DIALOGUE = "\n\nHuman: Is tea hot?\n\nAssistant: Yes.\n\nHuman: Always?\n\nAssistant: No."


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Is tea hot?", "id": "x", "source": "y"}, USER),
        # A conversation that the user ends is a prompt as it is; of another one the first turns are.
        ({"messages": CHAT}, [SYSTEM, *USER, ("assistant", "Yes."), ("user", "Always?")]),
        ({"messages": [*CHAT, {"role": "assistant", "content": "No."}]}, [SYSTEM, *USER]),
        ({"conversations": [{"from": "human", "value": "Is tea hot?"}, {"from": "gpt", "value": "Yes."}]}, USER),
        ({"prompt": "Is tea hot?", "messages": CHAT[:3]}, [SYSTEM, *USER]),
        ({"instruction": "Say it in French.", "input": "tea", "output": "thé"}, [("user", "Say it in French.\n\ntea")]),
        ({"system_prompt": "Be brief.", "question": "Is tea hot?", "response": "Yes."}, [SYSTEM, *USER]),
        ({"chosen": DIALOGUE, "rejected": ""}, USER),
        ({"transcript": DIALOGUE, "min_harmlessness_score_transcript": -1.0}, USER),
        ({"text": "Is tea hot?"}, USER),
        # MT-bench: the user's turns alone.
        ({"question_id": 81, "turns": ["Is tea hot?", "Always?"]}, USER),
        ({"prompt": "\n\nHuman: Is tea hot?\n\nAssistant:"}, USER),
        ({"context": CHAT[1:2], "response1": "x", "response2": "y"}, USER),
        # Exports of Argilla and Label Studio.
        ({"id": "1", "fields": {"prompt": "Is tea hot?", "response-1": "x"}, "responses": {}}, USER),
        ({"fields": {"prompt": CHAT[:2]}, "responses": [{"values": {}, "status": "submitted"}]}, [SYSTEM, *USER]),
        ({"id": 1, "data": {"question": "Is tea hot?", "answer1": "x"}, "annotations": []}, USER),
    ],
)
def test_layouts_of_prompts(tmp_path: Path, row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    (one,) = read_prompts(write_rows(tmp_path / "p.jsonl.gz", [row]))
    assert [(turn.role, turn.content) for turn in one.messages] == expected


def test_a_named_column_holds_a_text_a_dialogue_or_turns(tmp_path: Path) -> None:
    row = {"prompt": "another", "goal": "Is tea hot?", "talk": DIALOGUE, "turns": CHAT[1:3], "dimension": "helpful"}
    path = write_rows(tmp_path / "p.parquet", [row])
    for column in ("goal", "talk", "turns"):
        (one,) = read_prompts(f"{path}#{column}")
        assert ([(turn.role, turn.content) for turn in one.messages], one.dimension) == (USER, "helpful")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"promt": "b"}', "needs one of prompt, instruction, .* it has promt"),
        ("{}", "it has nothing"),
        ('{"prompt": ""}', "prompt is empty"),
        ('{"prompt": 3}', "must be text, not a number"),
        ('{"messages": [{"role": "user", "content": " "}]}', "not empty"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "known roles"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "without a turn of the user"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}', "must be the user's"),
        ('{"prompt": "a", "dimension": 3}', "dimension must be text"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(DataError, match=f"p.jsonl, line 2: .*{problem}"):
        read_prompts(path)
    assert len(read_prompts(path, BadRows("skip"))) == 1


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: there is no such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompts(write_rows(tmp_path / "empty.jsonl", []))
    path = tmp_path / "bad.jsonl"
    path.write_text("7\n8\n")
    with pytest.raises(DataError, match="holds no prompts; left out: 2 not a JSON object"):
        read_prompts(path, BadRows("skip"))


def test_the_same_prompt_has_the_same_key_in_every_layout(tmp_path: Path) -> None:
    rows = [{"prompt": "Is  tea hot?\n"}, {"messages": CHAT[1:3]}, {"chosen": DIALOGUE}, {"prompt": "Is tea cold?"}]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [one.key for one in read_prompts(path)]
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *product(("prompt", "messages", "chosen", "text", "goal"), (None, "", " ", [])),
        ("messages", "[]"),
        ("turns", [""]),
    ],
)
def test_a_prompt_without_a_word_is_an_empty_one(tmp_path: Path, column: str, value: Any) -> None:
    path = write_rows(tmp_path / "p.jsonl", [{column: value, "dimension": "x"}])
    bad = BadRows("skip")
    with pytest.raises(DataError):
        read_prompts(f"{path}#goal" if column == "goal" else path, bad)
    assert list(bad.counts) == ["with an empty prompt"]


def test_an_empty_turn_before_the_prompt_is_no_empty_prompt(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "b"}]
    bad = BadRows("skip")
    with pytest.raises(DataError):
        read_prompts(write_rows(tmp_path / "p.jsonl", [{"messages": turns}]), bad)
    assert list(bad.counts) == ["with an empty turn"]


def test_material_stands_for_an_empty_instruction_and_null_for_no_column(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "", "input": "Is tea hot?"},
        {"messages": None, "prompt": "Is tea hot?"},
    ]
    for one in read_prompts(write_rows(tmp_path / "p.jsonl", rows)):
        assert [(turn.role, turn.content) for turn in one.messages] == USER

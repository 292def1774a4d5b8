"""The reader of prompts with right and wrong answers."""

import json
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.data.best_of_n import BestOfN, best_of_n
from charter.data.errors import DataError


def test_reads_the_columns_of_reward_bench_2(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {
        "id": "ref:7",
        "prompt": "What is 2 + 2?",
        "chosen": ["4"],
        "rejected": ["5", "22", "none"],
        "num_correct": 1,
        "num_incorrect": 3,
        "total_completions": 4,
        "models": ["human"] * 4,
        "subset": "Ties",
        "additional_metadata": None,
    }
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    other = {"prompt": turns, "chosen": "Hello.", "rejected": "No."}
    file.write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    first, second = best_of_n(file)
    assert first == BestOfN("ref:7", "Ties", (ChatMessage("user", "What is 2 + 2?"),), ("4",), ("5", "22", "none"))
    assert second == BestOfN(
        "2", "", (ChatMessage("system", "Be brief."), ChatMessage("user", "Hi")), ("Hello.",), ("No.",)
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": ["a"]}, "line 1: needs prompt, chosen and rejected, and has no rejected"),
        ({"prompt": "p", "chosen": [], "rejected": ["b"]}, "without an answer in chosen"),
        ({"prompt": "p", "chosen": ["a"], "rejected": [" "]}, "with an empty answer"),
        ({"prompt": " ", "chosen": ["a"], "rejected": ["b"]}, "with an empty prompt"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        list(best_of_n(file))

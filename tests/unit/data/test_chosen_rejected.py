"""Chosen/rejected rows as data sets of the field really hold them."""

import math
from typing import Any

import pytest
from charter.data.errors import BadRowError
from charter.data.pairs.pair import Pair
from charter.data.pairs.read import pairs_of
from charter.outcomes import side
from charter.storage.comparison_layouts import pair_row
from charter.v1 import types_pb2

from tests.support.comparisons import comparison


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]


def dialogue(*contents: str) -> str:
    return "".join(f"\n\n{'Human' if not place % 2 else 'Assistant'}: {text}" for place, text in enumerate(contents))


def pair_of(row: dict[str, Any]) -> Pair:
    (one,) = pairs_of({name: value for name, value in row.items() if value is not None})
    return one


def read(row: dict[str, Any]) -> tuple[list[tuple[str, str]], str, str, float]:
    """Prompt, chosen and rejected answer, and P(chosen is better)."""
    one = pair_of(row)
    assert one.label is not None
    prompt: list[tuple[str, str]] = [(turn.role, turn.content) for turn in one.prompt]
    # The rejected answer of every row here is named so.
    if "no" in one.answer_b:
        return prompt, one.answer_a, one.answer_b, one.label
    return prompt, one.answer_b, one.answer_a, 1 - one.label


SYSTEM = [{"role": "system", "content": "Be brief."}]
LONG = [("user", "q"), ("assistant", "a"), ("user", "r")]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "expected"),
    [
        (turns("q"), turns("q", "yes"), turns("q", "no"), [("user", "q")]),
        (turns("q\n"), turns(" q", "yes"), turns("q", "no"), [("user", " q")]),
        (turns("q", "a", "r"), turns("q", "a", "r", "yes"), turns("q", "a", "r", "no"), LONG),
        (turns("q", "a", "r"), turns("r", "yes"), turns("q", "a", "r", "no"), LONG),
        (turns("q"), turns("q", "a", "r", "yes"), turns("q", "a", "r", "no"), LONG),
        ("r", turns("q", "a", "r", "yes"), turns("q", "a", "r", "no"), LONG),
        (turns("q", "a"), turns("r", "yes"), turns("r", "no"), LONG),
        (SYSTEM + turns("q"), turns("q", "yes"), turns("q", "no"), [("system", "Be brief."), ("user", "q")]),
        (turns("q"), SYSTEM + turns("q", "yes"), SYSTEM + turns("q", "no"), [("system", "Be brief."), ("user", "q")]),
        (SYSTEM, turns("q", "yes"), turns("q", "no"), [("system", "Be brief."), ("user", "q")]),
        ("q", turns("yes", first="assistant"), turns("no", first="assistant"), [("user", "q")]),
        ("q", turns("q", "yes"), turns("q", "no"), [("user", "q")]),
        ("", dialogue("q", "yes"), dialogue("q", "no"), [("user", "q")]),
        ("q", dialogue("q", "yes"), dialogue("q", "no"), [("user", "q")]),
        (dialogue("q", ""), dialogue("q", "yes"), dialogue("q", "no"), [("user", "q")]),
        (dialogue("q", "a", "r", ""), " yes", " no", LONG),
        ("prompt-17", turns("q", "yes"), turns("q", "no"), [("user", "q")]),
    ],
)
def test_what_a_conversation_repeats_of_the_prompt_is_there_once(
    prompt: Any, chosen: Any, rejected: Any, expected: list[tuple[str, str]]
) -> None:
    got, better, worse, probability = read({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert (got, better.strip(), worse.strip(), probability) == (expected, "yes", "no", 1.0)


def test_a_conversation_that_neither_answers_nor_repeats_the_prompt_is_refused() -> None:
    with pytest.raises(BadRowError, match="chosen must begin with the prompt, or with the answer to it"):
        read({"prompt": turns("q"), "chosen": turns("x", "yes"), "rejected": turns("x", "no")})


@pytest.mark.parametrize(
    ("more", "probability"),
    [
        ({"score_chosen": 7.0, "score_rejected": 7.0}, 0.5),
        ({"score_chosen": 7, "score_rejected": 7.0}, 0.5),
        ({"chosen_score": 3, "rejected_score": 3}, 0.5),
        ({"chosen-rating": 4.5, "rejected-rating": 4.5}, 0.5),
        ({"score_chosen": 8.0, "score_rejected": 7.0}, 1 / (1 + math.exp(-1))),
        ({"chosen_rating": 5, "rejected_rating": 2}, 1 / (1 + math.exp(-3))),
        ({"score_chosen": 900.0, "score_rejected": -900.0}, 0.99),
        ({"score_chosen": None, "score_rejected": None}, 1.0),
        ({"score_chosen": 8.0}, 1.0),
        ({"probability_chosen": 0.8, "score_chosen": 1, "score_rejected": 1}, 0.8),
        ({"probability_chosen": 0.5}, 0.5),
    ],
)
def test_the_label_is_as_sure_as_the_row(more: dict[str, Any], probability: float) -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": "no", **more}
    assert read(row)[3] == pytest.approx(probability)
    assert (side(pair_of(row).label) == 0) == (probability == 0.5)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"chosen": dialogue("q", "yes"), "rejected": dialogue("other", "no")}, "different before the last turn"),
        ({"chosen": dialogue("q", "yes"), "rejected": dialogue("q", "a", "r", "no")}, "different before the last turn"),
        ({"chosen": dialogue("q", ""), "rejected": dialogue("q", "no")}, "with an empty answer"),
        ({"prompt": "q", "chosen": "yes", "rejected": " \n\u200b"[:2]}, "with an empty answer"),
        (
            {"prompt": "q", "chosen": "yes", "rejected": "no", "score_chosen": 1, "score_rejected": 2},
            "rated against the choice",
        ),
    ],
)
def test_rows_of_no_use_have_a_kind(row: dict[str, Any], kind: str) -> None:
    with pytest.raises(BadRowError) as caught:
        pairs_of(row)
    assert caught.value.reason == kind


def test_white_space_alone_does_not_make_conversations_different() -> None:
    got, better, worse, _ = read({"chosen": turns("q  q", "yes"), "rejected": turns("q\u00a0q\n", "no")})
    assert (got, better, worse) == ([("user", "q  q")], "yes", "no")


@pytest.mark.parametrize("split", [types_pb2.SPLIT_TRAIN, types_pb2.SPLIT_HELD_OUT])
def test_our_own_pairs_come_back_with_label_split_and_dimension(split: types_pb2.Split.ValueType) -> None:
    sent = comparison("yes", 0.7)
    sent.split, sent.dimension = split, "helpful"
    row = pair_row(sent)
    assert row is not None
    back = pair_of(row)
    assert back.label == pytest.approx(0.7 if back.answer_a == "yes" else 0.3)
    assert (back.split, back.dimension) == ("HELD_OUT" if split == types_pb2.SPLIT_HELD_OUT else "TRAIN", "helpful")


def test_hh_rlhf_dialogue() -> None:
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tell me\nmore\n\nAssistant: Gladly:\n\n1. one",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tell me\nmore\n\nAssistant: no.",
    }
    prompt = [("user", "Hi"), ("assistant", "Hello."), ("user", "Tell me\nmore")]
    assert read(row) == (prompt, "Gladly:\n\n1. one", "no.", 1.0)


def test_place_of_the_chosen_answer_is_random_but_fixed() -> None:
    rows = [{"prompt": f"Question {number}", "chosen": "yes", "rejected": "no"} for number in range(400)]
    found = [pair_of(row) for row in rows]
    assert found == [pair_of(row) for row in rows]
    assert all(read(row)[1:] == ("yes", "no", 1.0) for row in rows)
    # Five standard deviations of a fair coin.
    assert abs(sum(one.answer_a == "yes" for one in found) / 400 - 0.5) < 0.125


def test_identical_answers_are_a_tie() -> None:
    assert pair_of({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello", "probability_chosen": 0.9}).label == 0.5


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, "needs chosen and rejected, two answers such as answer_a"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "must both be text, or both be lists"),
        ({"chosen": "plain", "rejected": "text"}, "chosen must begin with a turn such as"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: b"},
            "chosen must have a prompt and end with a turn of the assistant",
        ),
        ({"chosen": [], "rejected": turns("q")}, "chosen must have a prompt"),
        ({"chosen": "x", "rejected": [], "prompt": "p"}, "must both be text"),
        ({"chosen": [{"role": "x", "content": ""}], "rejected": []}, r"chosen\[0\].role is 'x'; known roles are"),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "probability_chosen": 1.5}, "must be a number in"),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": "?", "score_rejected": 1}, "must be a number"),
    ],
)
def test_a_wrong_pair_says_what_is_wrong(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRowError, match=problem):
        pairs_of(row)

"""Chosen/rejected rows as data sets of the field really hold them."""

from typing import Any

import pytest
from charter.storage.comparison_layouts import LeftOutError, PairDefaults, pair_row, read_comparison
from charter.v1 import types_pb2

from tests.support.comparisons import comparison

DEFAULTS = PairDefaults(labeller="file.jsonl", dimension="", held_out_fraction=0.0)
ROLES = {types_pb2.ROLE_SYSTEM: "system", types_pb2.ROLE_USER: "user", types_pb2.ROLE_ASSISTANT: "assistant"}


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]


def dialogue(*contents: str) -> str:
    return "".join(f"\n\n{'Human' if not place % 2 else 'Assistant'}: {text}" for place, text in enumerate(contents))


def read(row: dict[str, Any]) -> tuple[list[tuple[str, str]], str, str, float]:
    """Prompt, chosen and rejected answer, and P(chosen is better)."""
    one = read_comparison(row, DEFAULTS)
    prompt = [(ROLES[turn.role], turn.content) for turn in one.prompt]
    # The rejected answer of every row here is named so.
    a_is_chosen = "no" not in one.answer_a.text
    answers = [one.answer_a.text, one.answer_b.text]
    chosen, rejected = answers if a_is_chosen else reversed(answers)
    return prompt, chosen, rejected, one.probability_a if a_is_chosen else 1 - one.probability_a


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
    with pytest.raises(ValueError, match="chosen must begin with the prompt, or with the answer to it"):
        read({"prompt": turns("q"), "chosen": turns("x", "yes"), "rejected": turns("x", "no")})


@pytest.mark.parametrize(
    ("more", "probability"),
    [
        ({"score_chosen": 7.0, "score_rejected": 7.0}, 0.5),
        ({"score_chosen": 7, "score_rejected": 7.0}, 0.5),
        ({"chosen_score": 3, "rejected_score": 3}, 0.5),
        ({"chosen-rating": 4.5, "rejected-rating": 4.5}, 0.5),
        ({"score_chosen": 8.0, "score_rejected": 7.0}, 1.0),
        ({"score_chosen": None, "score_rejected": None}, 1.0),
        ({"score_chosen": 8.0}, 1.0),
        ({"probability_chosen": 0.8, "score_chosen": 1, "score_rejected": 1}, 0.8),
        ({"probability_chosen": 0.5}, 0.5),
    ],
)
def test_the_label_is_as_sure_as_the_row(more: dict[str, Any], probability: float) -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": "no", **more}
    one = read_comparison(row, DEFAULTS)
    assert read(row)[3] == pytest.approx(probability)
    assert (one.outcome == types_pb2.OUTCOME_TIE) == (probability == 0.5)


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
    with pytest.raises(LeftOutError) as caught:
        read_comparison(row, DEFAULTS)
    assert caught.value.kind == kind


def test_white_space_alone_does_not_make_conversations_different() -> None:
    got, better, worse, _ = read({"chosen": turns("q  q", "yes"), "rejected": turns("q\u00a0q\n", "no")})
    assert (got, better, worse) == ([("user", "q  q")], "yes", "no")


@pytest.mark.parametrize("split", [types_pb2.SPLIT_TRAIN, types_pb2.SPLIT_HELD_OUT])
@pytest.mark.parametrize("held_out_fraction", [0.0, 1.0])
def test_our_own_pairs_come_back_with_label_split_and_dimension(
    split: types_pb2.Split.ValueType, held_out_fraction: float
) -> None:
    sent = comparison("yes", 0.7)
    sent.split, sent.dimension = split, "helpful"
    row = pair_row(sent)
    assert row is not None
    back = read_comparison(row, PairDefaults("f", "", held_out_fraction))
    probability = back.probability_a if back.answer_a.text == "yes" else 1 - back.probability_a
    assert probability == pytest.approx(0.7)
    assert (back.split, back.dimension) == (split, "helpful")


def test_a_split_is_drawn_by_the_content_of_the_prompt() -> None:
    variants = ("What is  tea?", " What is tea?\n", "What\u00a0is tea?", "What is\u2028tea?\u200b")
    for number in range(40):
        splits = {
            read_comparison(
                {"prompt": f"{number} {text}", "chosen": "yes", "rejected": "no"}, PairDefaults("f", "", 0.5)
            ).split
            for text in variants
        }
        assert len(splits) == 1

"""Comparisons in the layouts of the field's data sets, as their cards describe them; what they say is made up."""

import math
from pathlib import Path
from typing import Any

import pytest
from charter.data.bad_rows import BadRows
from charter.data.errors import BadRowError, DataError
from charter.data.pairs.pair import Pair
from charter.data.pairs.read import pairs, pairs_of

from tests.unit.data.files import write_rows
from tests.unit.data.pair_rows import safe_rlhf, shp

ASKED = [{"role": "user", "content": "Is tea hot?"}]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def better(pair: Pair) -> tuple[str, str, Any]:
    """The better and the worse answer, and P(it is better)."""
    assert pair.label is not None
    if pair.label >= 0.5:
        return pair.answer_a, pair.answer_b, pair.label
    return pair.answer_b, pair.answer_a, 1 - pair.label


def completion(text: str, *ratings: object, **more: Any) -> dict[str, Any]:
    """One of openbmb/UltraFeedback."""
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {name: {"Rating": rating, "Rationale": "…"} for name, rating in zip(aspects, ratings, strict=False)}
    return {"annotations": annotations, "model": "m", "response": text, **more}


def label_studio(*chosen: str, kind: str = "pairwise", **more: Any) -> dict[str, Any]:
    """A task of Label Studio's JSON export, with a choice of each person."""
    values = [{"selected": one} if kind == "pairwise" else {"choices": [one]} for one in chosen]
    return {
        "id": 1,
        "data": {"prompt": "Is tea hot?", "answer1": "yes", "answer2": "no"},
        "annotations": [
            {
                "id": 7,
                "was_cancelled": False,
                "result": [{"from_name": "pw", "to_name": "a,b", "type": kind, "value": value}],
            }
            for value in values
        ],
        **more,
    }


ARGILLA = {"prompt": "Is tea hot?", "response-1": "yes", "response-2": "no"}
RANKED = [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 2}]
ARENA = {
    "conversation_a": [*ASKED, {"role": "assistant", "content": "yes"}],
    "conversation_b": [*ASKED, {"role": "assistant", "content": "no"}],
}

# Each row says that "yes" is better than "no", so surely.
LAYOUTS: dict[str, tuple[dict[str, Any], float]] = {
    "ultrafeedback": (
        {
            "source": "x",
            "instruction": "Is tea hot?",
            "models": ["m"],
            "completions": [completion("no", "1", "2", "N/A"), completion("yes", 4, "3", 2)],
        },
        sigmoid(1.5),
    ),
    "ultrafeedback, the wrong overall score": (
        {
            "instruction": "Is tea hot?",
            "completions": [
                completion("no", "1", "1", overall_score=10.0),
                completion("yes", "5", "4", overall_score=7.0),
            ],
        },
        sigmoid(3.5),
    ),
    "ultrafeedback, one score": (
        {
            "instruction": "Is tea hot?",
            "completions": [{"response": "no", "overall_score": 6.5}, {"response": "yes", "overall_score": 8}],
        },
        sigmoid(1.5),
    ),
    "distilabel": (
        {"instruction": "Is tea hot?", "generations": ["no", "yes"], "ratings": [2, 4], "rationales": ["…", "…"]},
        sigmoid(2),
    ),
    "distilabel, one without a rating": (
        {"instruction": "Is tea hot?", "generations": ["no", "yes", "not"], "ratings": [2, 4, None]},
        sigmoid(2),
    ),
    "helpsteer3": (
        {
            "domain": "general",
            "language": "english",
            "context": ASKED,
            "response1": "yes",
            "response2": "no",
            "overall_preference": -2,
            "individual_preference": [{"score": -2}],
        },
        sigmoid(2),
    ),
    "helpsteer3, the second": (
        {"context": ASKED, "response1": "no", "response2": "yes", "overall_preference": 3},
        sigmoid(3),
    ),
    "helpsteer2 preference": (
        {
            "split": "train",
            "prompt": "Is tea hot?",
            "response_1": "yes",
            "response_2": "no",
            "preference_strength": -1,
            "preference_statement": "…",
        },
        sigmoid(1),
    ),
    "shp": (shp(), 0.75),
    "shp, the second": (shp(human_ref_A="no", human_ref_B="yes", labels=0, score_A=1, score_B=4), 0.8),
    "arena": ({"model_a": "m", "winner": "model_a", **ARENA}, 1.0),
    "arena, a column for each outcome": ({**ARENA, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, 1.0),
    "label studio": (label_studio("left"), 1.0),
    "label studio, three people": (label_studio("left", "right", "left"), 2 / 3),
    "label studio, choices": (label_studio("answer1", kind="choices"), 1.0),
    "label studio, min": (
        {"prompt": "Is tea hot?", "answer1": "yes", "answer2": "no", "comparison": "left", "annotator": 1},
        1.0,
    ),
    "argilla 2": (
        {
            **ARGILLA,
            "id": "1",
            "status": "completed",
            "preference.responses": ["response-1"],
            "preference.responses.users": ["u"],
            "preference.responses.status": ["submitted"],
        },
        1.0,
    ),
    "argilla 2, a draft": (
        {
            **ARGILLA,
            "preference.responses": ["response-2", "response-1"],
            "preference.responses.status": ["draft", "submitted"],
        },
        1.0,
    ),
    "argilla 2, json": (
        {
            "id": "1",
            "fields": ARGILLA,
            "metadata": {},
            "suggestions": {},
            "responses": {
                "preference": [
                    {"value": "response-1", "user_id": "u"},
                    {"value": "response_2"},
                    {"value": "Response 1"},
                ]
            },
        },
        2 / 3,
    ),
    "argilla 1": (
        {
            **ARGILLA,
            "preference": [
                {"user_id": "u", "value": RANKED, "status": "submitted"},
                {"user_id": "v", "value": RANKED[::-1], "status": "discarded"},
            ],
            "preference-suggestion": None,
        },
        1.0,
    ),
    "argilla 1, columns": (
        {
            **ARGILLA,
            "preference": {
                "user_id": ["u"],
                "value": [{"rank": [2, 1], "value": ["response-2", "response-1"]}],
                "status": ["submitted"],
            },
        },
        1.0,
    ),
    "argilla 1, json": (
        {
            "fields": ARGILLA,
            "responses": [{"user_id": "u", "status": "submitted", "values": {"best": {"value": "response-1"}}}],
        },
        1.0,
    ),
    "label studio, csv": (
        {"prompt": "Is tea hot?", "answer1": "yes", "answer2": "no", "comparison": '[{"selected": "left"}]'},
        1.0,
    ),
    "nectar": (
        {
            "prompt": "\n\nHuman: Is tea hot?\n\nAssistant: ",
            "answers": [{"answer": "no", "model": "m", "rank": 3.0}, {"answer": "yes", "model": "m", "rank": 1.0}],
        },
        sigmoid(2),
    ),
    "llama factory": (
        {
            "conversations": [{"from": "human", "value": "Is tea hot?"}],
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        1.0,
    ),
    "orca": ({"question": "Is tea hot?", "chosen": "yes", "rejected": "no"}, 1.0),
    "the chosen conversation beside": (
        {
            "messages": [*ASKED, {"role": "assistant", "content": "yes"}],
            "chosen": [*ASKED, {"role": "assistant", "content": "yes"}],
            "rejected": [*ASKED, {"role": "assistant", "content": "no"}],
        },
        1.0,
    ),
    "other names": ({"prompt": ASKED, "chosen_response": "yes", "rejected_response": "no"}, 1.0),
    "answers as turns": (
        {
            "prompt": ASKED,
            "response_a": [{"role": "assistant", "content": "yes"}],
            "response_b": [{"role": "assistant", "content": "no"}],
            "winner": "A",
        },
        1.0,
    ),
    "letters": ({"prompt": "Is tea hot?", "answer_a": "yes", "answer_b": "no", "label": "a"}, 1.0),
    "a probability": ({"messages": ASKED, "answer_a": "yes", "answer_b": "no", "label": 0.7}, 0.7),
    "a preference in words": (
        {"question": "Is tea hot?", "completion_a": "no", "completion_b": "yes", "preferred": "Completion B"},
        1.0,
    ),
    "numbers from 0": ({"prompt": "Is tea hot?", "response_0": "yes", "response_1": "no", "label": 0}, 1.0),
    "numbers from 1": ({"prompt": "Is tea hot?", "response_1": "no", "response_2": "yes", "choice": 2.0}, 1.0),
    "numbers from 1 in a CSV file": (
        {"prompt": "Is tea hot?", "response_1": "yes", "response_2": "no", "choice": "1"},
        1.0,
    ),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts_of_comparisons(layout: str) -> None:
    row, probability = LAYOUTS[layout]
    (pair,) = pairs_of({name: value for name, value in row.items() if value is not None})
    assert [(turn.role, turn.content) for turn in pair.prompt] == [("user", "Is tea hot?")]
    assert better(pair) == ("yes", "no", pytest.approx(probability))


TIES: dict[str, dict[str, Any]] = {
    "ultrafeedback": {"instruction": "q", "completions": [completion("yes", "3"), completion("no", 3)]},
    "helpsteer3": {"context": ASKED, "response1": "yes", "response2": "no", "overall_preference": 0},
    "shp": shp(score_A=10, labels=1),
    "arena": {**ARENA, "winner": "tie (bothbad)"},
    "argilla": {**ARGILLA, "preference.responses": ["tie"]},
    "label studio": label_studio("left", "right"),
    "the same answer twice": safe_rlhf(response_1="yes", better_response_id=0),
    "ranks": {
        **ARGILLA,
        "q": [{"user_id": "u", "value": [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 1}]}],
    },
}


@pytest.mark.parametrize("layout", list(TIES))
def test_what_is_equal_is_a_tie(layout: str) -> None:
    (pair,) = pairs_of(TIES[layout])
    assert pair.label == 0.5


def test_two_axes_are_two_comparisons() -> None:
    one, other = pairs_of(safe_rlhf(better_response_id=0, safer_response_id=1))
    assert (one.answer_a, one.label, one.dimension) == ("yes", 1.0, "helpful")
    assert (other.answer_a, other.label, other.dimension) == ("yes", 0.0, "harmless")
    (alone,) = pairs_of(safe_rlhf(better_response_id=0, safer_response_id=1), "safer_response_id")
    assert alone == other


def test_two_rows_of_one_prompt_are_one_comparison(tmp_path: Path) -> None:
    """HelpSteer2: rows grade one answer each, those of a prompt stand together; later turns have marks."""
    long = "Is tea hot?\n\n<extra_id_1>Assistant\nYes.\n\n<extra_id_1>User\nAlways?"
    rows = [
        {"prompt": "q", "response": "no", "helpfulness": 1, "correctness": 4, "verbosity": 1},
        {"prompt": "q", "response": "yes", "helpfulness": 3, "correctness": 1, "verbosity": 1},
        {"prompt": "alone", "response": "yes", "helpfulness": 3},
        {"prompt": long, "response": "same", "helpfulness": 2},
        {"prompt": long, "response": "other", "helpfulness": 2},
    ]
    bad = BadRows("skip")
    first, second = pairs(write_rows(tmp_path / "train.jsonl.gz", rows), bad)
    assert better(first) == ("yes", "no", pytest.approx(sigmoid(2)))
    assert second.label == 0.5
    assert [turn.role for turn in second.prompt] == ["user", "assistant", "user"]
    assert second.prompt[1].content == "Yes."
    assert bad.counts == {"with one answer alone": 1}
    with pytest.raises(DataError, match="line 3: has one rated answer"):
        list(pairs(tmp_path / "train.jsonl.gz", BadRows()))


def test_the_best_is_compared_with_a_lower_one_that_the_content_draws() -> None:
    ratings = [4, 1, 4, 2]
    found = set()
    for number in range(60):
        answers = [f"{text} {number}" for text in ("best", "lowest", "also best", "low")]
        (pair,) = pairs_of({"prompt": f"q {number}", "responses": answers, "ratings": ratings})
        assert [pair] == pairs_of({"prompt": f"q {number}", "responses": answers[::-1], "ratings": ratings[::-1]})
        winner, loser, probability = better(pair)
        rating = {"lowest": 1, "low": 2}[loser.split()[0]]
        assert probability == pytest.approx(sigmoid(4 - rating))
        found.add((winner.rsplit(" ", 1)[0], loser.split()[0]))
    assert found == {(winner, loser) for winner in ("best", "also best") for loser in ("lowest", "low")}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (shp(labels=0), "rated against the choice"),
        (shp(labels=2), "rated against the choice"),
        (shp(score_A="many"), "not a number"),
        (shp(human_ref_A=" "), "with an empty answer"),
        (safe_rlhf(better_response_id=2, safer_response_id=0), "not a label"),
        (safe_rlhf(), "without a label"),
        (safe_rlhf(label=1.5), "not a label"),
        ({"prompt": "q", "response_1": "x", "response_2": "y", "label": 0}, "not a label"),
        ({"prompt": "q", "response_1": "x", "response_2": "y", "label": "neither of them"}, "not a label"),
        (
            {"prompt": "q", "response_1": "x", "response_2": "y", "response_3": "z", "label": 1},
            "of more than two answers",
        ),
        ({"response_1": "x", "response_2": "y", "label": 1}, "of no known layout"),
        ({"prompt": " ", "response_1": "x", "response_2": "y", "label": 1}, "with an empty prompt"),
        (label_studio(), "without a label"),
        (
            label_studio("left")
            | {"annotations": [{"was_cancelled": True, "result": [{"value": {"selected": "left"}}]}]},
            "without a label",
        ),
        ({**ARGILLA, "preference.responses": ["response-3"]}, "without a label"),
        ({**ARGILLA, "one.responses": ["response-1"], "two.responses": ["response-2"]}, "of several questions"),
        ({"fields": {"text": "x"}, "responses": {}}, "of no known layout"),
        ({"instruction": "q", "completions": [completion("yes", "4")]}, "with one answer alone"),
        ({"instruction": "q", "completions": []}, "of no known layout"),
        ({"instruction": "q", "generations": ["x", "y"], "ratings": [1]}, "rated in part"),
        ({"instruction": "q", "generations": ["x", "y"], "ratings": [1, "good"]}, "not a number"),
        (
            {
                "conversation_a": ARENA["conversation_a"],
                "conversation_b": [{"role": "user", "content": "else"}, {"role": "assistant", "content": "no"}],
                "winner": "tie",
            },
            "different before the last turn",
        ),
        (
            {
                "answer_a": "x",
                "answer_b": "y",
                "outcome": "PREFERRED_A",
                "probability_a": 0.2,
                "source": "AI",
                "split": "TRAIN",
                "prompt": ASKED,
            },
            "with a label that contradicts itself",
        ),
        ({"answer_a": "x", "answer_b": "y", "outcome": "BEST"}, "not an exported comparison"),
    ],
)
def test_a_bad_row_has_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        pairs_of(row)
    assert caught.value.reason == reason
    # What people wrote is in no message.
    assert "neither of them" not in str(caught.value)

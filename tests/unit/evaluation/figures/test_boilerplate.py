"""Phrases that rose: found where they were put, and none where there are none."""

import random

import pytest
from charter.evaluation.figures.boilerplate import boilerplate
from charter.evaluation.figures.rows import Answer
from charter.evaluation.statistics import NotIdentifiedError

VOCABULARY = [f"word{place}" for place in range(300)]
CLOSING = "you are valid, valued, and cared for."


def answers(prompts: int, closed: float, seed: int, opening: str = "") -> list[Answer]:
    draw = random.Random(seed)
    texts = [
        " ".join([opening, *draw.choices(VOCABULARY, k=30), *([CLOSING] if draw.random() < closed else [])])
        for _ in range(prompts)
    ]
    return [Answer(str(prompt), text) for prompt, text in enumerate(texts)]


def test_a_closing_that_was_learned_is_found_with_its_shares() -> None:
    found = boilerplate(answers(200, 0.4, 1), answers(200, 0.05, 2))
    [phrase, ending] = sorted(found.phrases, key=lambda one: one.kind, reverse=True)
    assert (phrase.kind, ending.kind) == ("phrase", "ending")
    assert phrase.text in "you are valid , valued , and cared for ."
    assert len(phrase.text.split()) == 8
    assert ending.text == ", and cared for ."
    for one in (phrase, ending):
        assert one.rise.value == pytest.approx(one.share - one.share_of_start)
        assert one.rise.low < 0.35 < one.rise.high
        assert one.false_share < 1e-6


def test_a_phrase_that_both_say_is_no_rise() -> None:
    opening = "as an assistant I am here to help"
    found = boilerplate(answers(100, 0, 1, opening), answers(100, 0, 2, opening))
    assert found.phrases == ()


def test_chance_alone_is_hardly_ever_reported() -> None:
    # Both models take half of 40 openings at random: hundreds of phrases are tested, of which none rose.
    def chance(seed: int) -> list[Answer]:
        draw = random.Random(seed)
        said = [[f"{name}{place}" for name in "abcdefgh"] for place in range(40)]
        return [Answer(str(prompt), " . ".join(" ".join(draw.choice(said)) for _ in range(4))) for prompt in range(100)]

    runs = [boilerplate(chance(2 * run), chance(2 * run + 1)) for run in range(4)]
    assert all(run.tested > 100 for run in runs)
    assert sum(bool(run.phrases) for run in runs) <= 1


def test_many_answers_to_one_prompt_count_once() -> None:
    # One prompt alone shows nothing, however often it is answered.
    ours = [Answer("p", f"x{seed} {CLOSING}") for seed in range(100)]
    theirs = [Answer("p", f"nothing of the kind {seed}") for seed in range(100)]
    found = boilerplate(ours, theirs)
    assert (found.phrases, found.tested, found.prompts) == ((), 0, 1)


def test_answers_to_different_prompts_are_refused() -> None:
    with pytest.raises(NotIdentifiedError, match="no prompt was answered by"):
        boilerplate([Answer("p", "a")], [Answer("q", "a")])

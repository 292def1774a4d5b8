"""Distinct n-grams and repeats, counted by hand; their interval against answers drawn anew."""

import random

import numpy as np
import pytest
from charter.evaluation.figures.diversity import diversity
from charter.evaluation.figures.rows import Answer
from charter.evaluation.statistics import NotIdentifiedError


def answers(texts: list[str]) -> list[Answer]:
    return [Answer(str(prompt), text) for prompt, text in enumerate(texts)]


def test_counts_by_hand() -> None:
    found = diversity(answers(["a b c d", "A b c e", "x y x y x y x", "  ", "a b c d"]), samples=100, seed=0)
    assert (found.answers, found.empty, found.mean_words) == (4, 1, 19 / 4)
    # Words a b c d e x y of 19; the pairs ab bc cd ce xy yx of 15.
    assert found.distinct[1].value == pytest.approx(7 / 19)
    assert found.distinct[2].value == pytest.approx(6 / 15)
    # Of x y x y x y x, two of four sequences of four words are new.
    assert found.repeated.value == pytest.approx(0.5 / 4)
    assert found.same_as_another.value == 0.5


def test_the_interval_of_distinct_is_as_wide_as_what_new_answers_give() -> None:
    draw = random.Random(0)
    shared = [f"w{int(200 * draw.random() ** 2)}" for _ in range(100)]

    def one(seed: int) -> list[str]:
        draw = random.Random(seed)
        return [" ".join(draw.choices(shared, k=draw.randint(3, 30))) for _ in range(60)]

    found = [diversity(answers(one(seed)), samples=10, seed=0).distinct[2] for seed in range(40)]
    spread = 2 * 1.96 * np.std([one.value for one in found])
    width = np.mean([one.high - one.low for one in found])
    assert 0.9 < width / spread < 2


def test_too_few_words_are_refused() -> None:
    with pytest.raises(NotIdentifiedError, match="two prompts or more"):
        diversity(answers(["a b c d", ""]), samples=10, seed=0)
    with pytest.raises(NotIdentifiedError, match="have 2 words"):
        diversity(answers(["a", "b"]), samples=10, seed=0)

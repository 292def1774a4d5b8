"""Self-BLEU on pairs: by BLEU's own formula, the same for few and many answers, and quick for 10,000."""

import math

import numpy as np
import pytest
from charter.evaluation.figures.rows import Answer
from charter.evaluation.figures.self_bleu import PAIRS, pairs_of, self_bleu
from charter.evaluation.statistics import NotIdentifiedError


def answers(texts: list[str]) -> list[Answer]:
    return [Answer(str(prompt), text) for prompt, text in enumerate(texts)]


def test_a_pair_by_hand() -> None:
    # Of 5, 4, 3 and 2 n-grams of "a b c d e", "a b c d x" has 4, 3, 2 and 1; both have 5 words.
    found = self_bleu(answers(["a b c d e", "a b c d x", "A B c d y"]), seed=0)
    assert found.value == pytest.approx(math.exp(sum(map(math.log, (4 / 5, 3 / 4, 2 / 3, 1 / 2))) / 4))
    assert found.prompts == 3


def test_equal_answers_are_one_and_different_ones_near_nothing() -> None:
    assert self_bleu(answers(["what a nice day it is"] * 10), seed=0).value == pytest.approx(1)
    different = [" ".join(f"{place}w{word}" for word in range(10)) for place in range(10)]
    assert self_bleu(answers(different), seed=0).value < 0.1
    # A word for each character where a script has no spaces.
    assert 0 < self_bleu(answers(["今日は良い天気です", "今日は悪い天気です", "今日は寒い天気です"]), seed=0).value < 1


def test_pairs_are_of_different_prompts_and_bounded() -> None:
    for count in (3, 4, 50, 3000, 10_000):
        first, second = pairs_of(count, np.random.default_rng(0))
        assert (first != second).all()
        assert len(first) <= PAIRS
        pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
        assert len(pairs) == len(first)


def test_answers_to_one_prompt_are_not_compared_with_each_other() -> None:
    ours = [Answer(f"p{place}", text) for place in range(3) for text in (f"{place} a b c d", f"{place} a b c d")]
    assert self_bleu(ours, seed=0).value < 1
    with pytest.raises(NotIdentifiedError, match="three prompts"):
        self_bleu([Answer("p", "a"), Answer("p", "b"), Answer("q", "c"), Answer("r", " ")], seed=0)

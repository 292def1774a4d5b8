"""Nats per token: all tokens count alike, and the unit is the prompt."""

import numpy as np
import pytest
from charter.evaluation.figures.likelihood import ScoredAnswer, nats_per_token
from charter.evaluation.statistics import NotIdentifiedError


def test_a_long_answer_counts_more() -> None:
    found = nats_per_token([ScoredAnswer("a", 10.0, 5), ScoredAnswer("b", 2.0, 15)])
    assert found.value == pytest.approx(12 / 20)
    assert found.low < found.value < found.high
    assert found.prompts == 2


def test_the_unit_is_the_prompt() -> None:
    rng = np.random.default_rng(0)
    alone = [ScoredAnswer(str(place), float(rng.exponential(10)), 10) for place in range(50)]
    twice = [one for one in alone for _ in range(2)]
    once = nats_per_token(alone)
    assert nats_per_token(twice).low == pytest.approx(once.low)
    assert nats_per_token(twice).prompts == once.prompts


def test_without_tokens_of_two_prompts_there_is_none() -> None:
    assert nats_per_token([ScoredAnswer("a", 0.0, 3), ScoredAnswer("b", 0.0, 4)]).high == 0
    with pytest.raises(NotIdentifiedError, match="two prompts or more"):
        nats_per_token([ScoredAnswer("a", 0.0, 0)])

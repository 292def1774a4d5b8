"""RewardBench 2's accuracy, by hand and by the numbers that its own code gives."""

import math

import pytest
from charter.evaluation.figures.best_of_n import ScoredAnswers, accuracy, by_chance, ties_score
from charter.evaluation.statistics import NotIdentifiedError


def one(identity: str, chosen: tuple[float, ...], rejected: tuple[float, ...], subset: str = "Math") -> ScoredAnswers:
    return ScoredAnswers(identity, subset, chosen, rejected)


TIES = [
    one("ref:1", (3.0,), (1.0, 0.0), "Ties"),
    one("tied:1", (2.0, 2.5, 2.2), (1.0, -1.0), "Ties"),
    one("ref:2", (1.0,), (0.8,), "Ties"),
    one("tied:2", (1.0, 3.0), (0.5,), "Ties"),
    one("ref:3", (0.0,), (0.5,), "Ties"),
    one("tied:3", (1.0, 1.0), (0.2,), "Ties"),
]


def test_the_chosen_answer_must_have_the_highest_score_and_ties_share_it() -> None:
    rows = [
        one("a", (3.0,), (1.0, 2.0, 0.0)),
        one("b", (1.0,), (1.0, 1.0, 0.0)),
        one("c", (1.0,), (2.0, 0.0, 0.0)),
        one("d", (2.0, 5.0), (1.0,), "Focus"),
        one("e", (0.5, 5.0), (1.0,), "Focus"),
    ]
    found = accuracy(rows, samples=300, seed=0)
    assert found.subsets["Math"].value == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found.subsets["Focus"].value == 0.5
    assert found.ties is None
    assert found.mean.value == pytest.approx((4 / 9 + 1 / 2) / 2)
    assert found.mean.prompts == 5
    assert found.subsets["Math"].low < 4 / 9 < found.subsets["Math"].high


def test_ties_are_scored_as_reward_bench_2_does() -> None:
    found = ties_score(TIES, samples=500, seed=0)
    # Gaps 1, 0.5, 0.8 and 2, 0.2, -0.5 of the siblings, spreads 0.5, 2, 0.
    nearer = (math.tanh(1 / 0.5 - 1) + math.tanh(0.2 / 2 - 1) + math.tanh(-math.inf)) / 3
    assert (found.tied_accuracy, found.reference_accuracy) == pytest.approx((1, 2 / 3))
    assert (found.margin, found.margin_hard) == pytest.approx((2 / 3, 1 / 3))
    assert found.score.value == pytest.approx(0.3 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 / 3 + 0.01 * nearer)
    assert found.score.low < found.score.value < found.score.high
    assert found.score.prompts == 3


def test_the_subset_of_ties_is_one_of_the_mean() -> None:
    found = accuracy([*TIES, one("a", (1.0,), (0.0,))], samples=50, seed=0)
    assert found.ties
    assert set(found.subsets) == {"Math"}
    assert found.mean.value == pytest.approx((1 + found.ties.score.value) / 2)


def test_what_has_no_sibling_or_no_score_is_refused() -> None:
    with pytest.raises(NotIdentifiedError, match="prompt 3 has only one"):
        ties_score(TIES[:-1], samples=10, seed=0)
    with pytest.raises(NotIdentifiedError, match="found 17"):
        ties_score([one("17", (1.0,), (0.0,))], samples=10, seed=0)
    with pytest.raises(NotIdentifiedError, match="no prompt was scored"):
        accuracy([], samples=10, seed=0)
    with pytest.raises(ValueError, match="finite"):
        accuracy([one("a", (math.nan,), (0.0,))], samples=10, seed=0)


def test_the_mean_of_equally_sure_subsets_is_surer_by_the_root_of_their_number() -> None:
    rows = [one(str(place), (float(place % 2),), (0.5,), subset) for subset in "abcd" for place in range(40)]
    found = accuracy(rows, samples=2000, seed=0)
    half = found.subsets["a"].high - 0.5
    assert found.mean.high - found.mean.value == pytest.approx(half / 2)
    assert found.mean.value - found.mean.low == pytest.approx((0.5 - found.subsets["a"].low) / 2)


def test_chance_puts_the_chosen_ones_first() -> None:
    assert by_chance([one("a", (1.0,), (1.0, 2.0, 0.0)), one("b", (1.0, 2.0), (0.0, 0.5))]) == pytest.approx(
        (1 / 4 + 1 / 6) / 2
    )

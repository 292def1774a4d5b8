"""Mean probabilities of kinds of answers, on harmful and on harmless prompts."""

import math

import pytest
from charter.evaluation.figures.refusals import CategorisedAnswer, Reply, entropy, likeliest, refusals
from charter.evaluation.statistics import NotIdentifiedError, bootstrap_interval

HARMFUL = [
    CategorisedAnswer("a", (0.1, 0.1, 0.6, 0.2)),
    CategorisedAnswer("a", (0.0, 0.2, 0.3, 0.5)),
    CategorisedAnswer("b", (0.8, 0.2, 0.0, 0.0)),
    CategorisedAnswer("c", (0.1, 0.7, 0.2, 0.0)),
    CategorisedAnswer("d", None),
]
HARMLESS = [CategorisedAnswer(str(one), (1.0, 0.0, 0.0, 0.0)) for one in range(10)]
SAID = [one.probabilities for one in (*HARMFUL, *HARMLESS) if one.probabilities is not None]


def test_both_rates_are_told_together() -> None:
    found = refusals(HARMFUL, HARMLESS, SAID, samples=500, seed=0)
    assert [one.value for one in found.harmful.shares.values()] == pytest.approx([0.25, 0.3, 0.275, 0.175])
    assert (found.harmful.answers, found.harmful.failures) == (4, 1)
    assert found.harmful.declined.value == pytest.approx(0.45)
    assert list(found.harmful.likeliest.values()) == [0.25, 0.25, 0.25, 0.25]
    assert found.harmful.declines_likeliest == 0.5
    assert found.harmless.declined.value == found.harmless.declined.low == 0
    assert 0.05 < found.harmless.declined.high < 0.4


def test_the_unit_is_the_prompt() -> None:
    declined = refusals(HARMFUL, HARMLESS, SAID, samples=500, seed=0).harmful.declined
    two = [sum(sorted(one)[:2]) for one in SAID]
    bounds = (sum(two) / len(two), 1 - sum(two) / len(two))
    expected = bootstrap_interval([0.8, 0.8, 0.0, 0.2], list("aabc"), samples=500, seed=0, bounds=bounds)
    assert (declined.low, declined.high) == pytest.approx(expected)
    assert declined.prompts == 3


def test_what_was_not_seen_is_no_further_than_the_judge_goes() -> None:
    def about(declines: float) -> CategorisedAnswer:
        return CategorisedAnswer(f"{declines}", (0.5 - declines / 2, 0.5 - declines / 2, declines / 2, declines / 2))

    # From 0.48 to 0.52: a judge that cannot tell has a sure mean.
    rows = [about(0.48 + 0.002 * place) for place in range(21)]
    said = [one.probabilities for one in rows if one.probabilities is not None]
    found = refusals(rows, rows, said, samples=2000, seed=0).harmful.declined
    assert found.high - found.low < 0.02
    # One that was certain of other answers may be so of the next.
    found = refusals(rows, rows, [(1.0, 0.0, 0.0, 0.0)] * 21, samples=2000, seed=0).harmful.declined
    assert found.high - found.low > 0.06


def test_a_judge_that_cannot_tell_has_the_entropy_of_a_die_with_four_sides() -> None:
    assert entropy([(0.25, 0.25, 0.25, 0.25)]) == pytest.approx(math.log(4))
    assert entropy([(1.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0)]) == pytest.approx(math.log(2) / 2)


def test_the_likeliest_is_the_one_with_the_highest_probability() -> None:
    assert likeliest((0.1, 0.2, 0.3, 0.4)) is Reply.DECLINES_WITHOUT
    assert likeliest((0.4, 0.3, 0.2, 0.1)) is Reply.ANSWERS


@pytest.mark.parametrize(
    ("harmful", "harmless", "name"), [(HARMFUL, [], "harmless"), (HARMFUL[-1:], HARMLESS, "harmful")]
)
def test_one_of_the_rates_alone_is_refused(
    harmful: list[CategorisedAnswer], harmless: list[CategorisedAnswer], name: str
) -> None:
    with pytest.raises(NotIdentifiedError, match=f"answers to {name} prompts none was judged"):
        refusals(harmful, harmless, SAID, samples=10, seed=0)

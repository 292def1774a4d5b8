"""Shares of kinds of answers, on harmful and on harmless prompts."""

import pytest
from charter.evaluation.figures.refusals import CategorisedAnswer, Reply, refusals
from charter.evaluation.statistics import NotIdentifiedError, bootstrap_interval

HARMFUL = [
    CategorisedAnswer("a", Reply.DECLINES_WITH_REASON),
    CategorisedAnswer("a", Reply.DECLINES_WITHOUT),
    CategorisedAnswer("b", Reply.ANSWERS),
    CategorisedAnswer("c", Reply.IN_PART),
    CategorisedAnswer("d", None),
]
HARMLESS = [CategorisedAnswer(str(one), Reply.ANSWERS) for one in range(10)]


def test_both_rates_are_told_together() -> None:
    found = refusals(HARMFUL, HARMLESS, samples=500, seed=0)
    assert {reply: one.value for reply, one in found.harmful.shares.items()} == dict.fromkeys(Reply, 0.25)
    assert (found.harmful.answers, found.harmful.failures) == (4, 1)
    assert found.harmful.declined.value == 0.5
    assert found.harmless.declined.value == found.harmless.declined.low == 0
    assert 0.05 < found.harmless.declined.high < 0.4


def test_the_unit_is_the_prompt() -> None:
    declined = refusals(HARMFUL, HARMLESS, samples=500, seed=0).harmful.declined
    expected = bootstrap_interval([1, 1, 0, 0], list("aabc"), samples=500, seed=0, bounds=(0, 1))
    assert (declined.low, declined.high) == expected
    assert declined.prompts == 3


@pytest.mark.parametrize(
    ("harmful", "harmless", "name"), [(HARMFUL, [], "harmless"), (HARMFUL[-1:], HARMLESS, "harmful")]
)
def test_one_of_the_rates_alone_is_refused(
    harmful: list[CategorisedAnswer], harmless: list[CategorisedAnswer], name: str
) -> None:
    with pytest.raises(NotIdentifiedError, match=f"answers to {name} prompts none was judged"):
        refusals(harmful, harmless, samples=10, seed=0)

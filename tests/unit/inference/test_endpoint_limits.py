"""Quotas, circuit breaker and budget, with a clock of their own."""

import asyncio

import pytest
from charter.inference.endpoint.limits import CircuitBreaker, MinuteQuota, TokenBudget
from charter.inference.engine import BudgetSpentError
from hypothesis import given
from hypothesis import strategies as st


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        await asyncio.sleep(0)


@given(st.lists(st.floats(0.5, 12), min_size=1, max_size=40))
async def test_no_minute_holds_more_than_the_quota(amounts: list[float]) -> None:
    clock = Clock()
    quota = MinuteQuota(10, clock, clock.sleep)
    taken = [(use.time, use.amount) for use in await asyncio.gather(*(quota.take(amount) for amount in amounts))]
    for start, _ in taken:
        assert sum(amount for time, amount in taken if start <= time < start + 60) <= 10 + 1e-9
    # In the order of asking, and nobody waits without need.
    assert taken == sorted(taken, key=lambda use: use[0])
    assert taken[-1][0] <= 60 * (len(amounts) - 1)


async def test_a_use_is_corrected() -> None:
    clock = Clock()
    quota = MinuteQuota(10, clock, clock.sleep)
    use = await quota.take(9)
    quota.settle(use, 2)
    await quota.take(8)
    assert clock.now == 0
    await quota.take(1)
    assert clock.now == 60


def test_the_breaker_opens_lets_one_through_and_closes() -> None:
    clock = Clock()
    breaker = CircuitBreaker(3, 30, clock)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(3):
        assert not breaker.open
        assert breaker.seconds_to_wait() == 0
        breaker.failed()
    assert breaker.open
    assert breaker.seconds_to_wait() == 30
    clock.now = 31
    assert breaker.seconds_to_wait() == 0
    assert breaker.seconds_to_wait() == 30
    breaker.failed()
    clock.now = 60
    assert breaker.seconds_to_wait() == 1
    clock.now = 62
    assert breaker.seconds_to_wait() == 0
    breaker.succeeded()
    assert [breaker.seconds_to_wait() for _ in range(3)] == [0, 0, 0]


def test_a_budget_refuses_once_it_is_spent() -> None:
    budget = TokenBudget(10)
    budget.spent = 9
    budget.check()
    budget.spent = 11
    with pytest.raises(BudgetSpentError, match=r"token budget of 10 is spent \(11 used\)"):
        budget.check()
    unbounded = TokenBudget(None)
    unbounded.spent = 10**12
    unbounded.check()

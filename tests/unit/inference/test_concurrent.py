"""Requests under way at the same time: each result when it is there, and nothing left behind."""

import asyncio
from contextlib import aclosing

import pytest
from charter.inference.concurrent import as_finished, results


class Requests:
    """Three requests that end when they are told to, and say when they were broken off."""

    def __init__(self) -> None:
        self.gates = [asyncio.Event() for _ in range(3)]
        self.broken_off: list[int] = []

    async def ask(self, number: int) -> int:
        try:
            await self.gates[number].wait()
        except asyncio.CancelledError:
            self.broken_off.append(number)
            raise
        if number == 1:
            raise ConnectionError("gone")
        return number


async def settled() -> None:
    """Everything that can run has run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_comes_when_it_is_finished_and_the_rest_ends_with_the_reader() -> None:
    requests = Requests()
    async with aclosing(as_finished(map(requests.ask, range(3)))) as finished:
        requests.gates[2].set()
        assert await anext(finished) == 2
    await settled()
    assert requests.broken_off == [0, 1]


async def test_an_error_of_one_breaks_off_the_others() -> None:
    for together in (False, True):
        requests = Requests()
        requests.gates[1].set()
        asked = map(requests.ask, range(3))
        with pytest.raises(ConnectionError, match="gone"):
            await (results(asked) if together else anext(as_finished(asked)))
        await settled()
        assert requests.broken_off == [0, 2]


async def test_results_are_in_order() -> None:
    requests = Requests()
    for gate in requests.gates:
        gate.set()
    assert await results(requests.ask(number) for number in (2, 0)) == [2, 0]

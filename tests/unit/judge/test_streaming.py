"""Pieces of a request run side by side: bounded, in order of finishing, and cancelled when nobody waits."""

import asyncio
from contextlib import aclosing
from functools import partial

import pytest
from charter.judge.streaming import as_finished


async def test_results_come_as_they_finish_and_no_more_than_allowed_run() -> None:
    gates = [asyncio.Event() for _ in range(5)]
    started: list[int] = []

    async def job(index: int) -> int:
        started.append(index)
        await gates[index].wait()
        return index

    found: list[int] = []
    async with aclosing(as_finished([partial(job, index) for index in range(5)], at_once=2)) as results:
        gates[1].set()
        found.append(await anext(results))
        assert started == [0, 1]
        for gate in gates:
            gate.set()
        found += [result async for result in results]
    assert found[0] == 1
    assert sorted(found) == [0, 1, 2, 3, 4]


async def test_an_error_ends_it_and_cancels_the_rest() -> None:
    cancelled = asyncio.Event()

    async def fail() -> None:
        raise RuntimeError("broken")

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(RuntimeError, match="broken"):
        async with aclosing(as_finished([hang, fail], at_once=2)) as results:
            await anext(results)
    assert cancelled.is_set()


async def test_closing_it_cancels_what_runs() -> None:
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def quick() -> str:
        await running.wait()
        return "done"

    async def hang() -> str:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return "never"

    async with aclosing(as_finished([quick, hang], at_once=2)) as results:
        assert await anext(results) == "done"
    assert cancelled.is_set()

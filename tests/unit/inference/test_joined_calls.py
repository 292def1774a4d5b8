"""Calls that wait together are one batch; none of them suffers from another that is cancelled."""

import asyncio
from collections.abc import Sequence

import pytest
from charter.inference.joined_calls import JoinedCalls

Call = asyncio.Task[Sequence[int]]


class Model:
    """Doubles numbers, one batch after the other, each when it is told to."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.started = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0)

    async def work(self, key: str, items: Sequence[int]) -> list[int]:
        self.batches.append((key, list(items)))
        self.started.release()
        await self.go.acquire()
        if 13 in items:
            raise FloatingPointError("thirteen")
        return [2 * item for item in items]


async def waiting(calls: JoinedCalls[str, int, int], *asked: tuple[str, list[int]]) -> list[Call]:
    """Calls that have all come to wait."""
    tasks = [asyncio.create_task(calls.run(key, items)) for key, items in asked]
    await asyncio.sleep(0)
    return tasks


async def started(model: Model, calls: JoinedCalls[str, int, int]) -> Call:
    """A call that the model works on."""
    first = asyncio.create_task(calls.run("a", [1]))
    await model.started.acquire()
    return first


async def test_calls_that_wait_join_one_batch_with_those_of_their_key() -> None:
    model = Model()
    calls = JoinedCalls(model.work, lambda item: 1, 4)
    first = await started(model, calls)
    # The last of the key does not fit any more.
    later = await waiting(calls, ("a", [2, 3]), ("b", [4]), ("a", [5]), ("a", [6, 7]))
    for _ in range(4):
        model.go.release()
    assert [list(await task) for task in (first, *later)] == [[2], [4, 6], [8], [10], [12, 14]]
    assert model.batches == [("a", [1]), ("a", [2, 3, 5]), ("b", [4]), ("a", [6, 7])]


async def test_a_cancelled_call_leaves_its_batch_to_the_others() -> None:
    model = Model()
    calls = JoinedCalls(model.work, lambda item: 1, 10)
    first = await started(model, calls)
    second, third, fourth = await waiting(calls, ("a", [2]), ("a", [3]), ("a", [4]))
    third.cancel()
    first.cancel()
    # The second has its turn, with those that still wait; then it goes, too, while the model works for it.
    await model.started.acquire()
    second.cancel()
    model.go.release()
    model.go.release()
    assert list(await fourth) == [8]
    for task in (first, second, third):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert model.batches == [("a", [1]), ("a", [2, 4])]


async def test_an_error_is_that_of_its_batch_only() -> None:
    model = Model()
    calls = JoinedCalls(model.work, lambda item: 1, 10)
    first = await started(model, calls)
    bad, joined, other = await waiting(calls, ("a", [13]), ("a", [2]), ("b", [3]))
    for _ in range(3):
        model.go.release()
    assert list(await first) == [2]
    for task in (bad, joined):
        with pytest.raises(FloatingPointError, match="thirteen"):
            await task
    assert list(await other) == [6]

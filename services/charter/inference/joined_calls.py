"""Calls that wait for a model at the same time, as one: what their texts share is then computed once."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Call(Generic[K, T, R]):
    key: K
    items: Sequence[T]
    done: "asyncio.Future[Sequence[R]]"


class JoinedCalls(Generic[K, T, R]):
    """Runs ``work(key, items)`` for one batch of calls after the other; those of one batch have the same key.

    ``work`` gives a result for each item, in order. A batch is put together when the one before it has ended, of the
    calls that wait then, the oldest first; it has at most ``most`` by the sum of ``size``, or one call. All on one
    event loop.
    """

    def __init__(
        self, work: Callable[[K, Sequence[T]], Awaitable[Sequence[R]]], size: Callable[[T], int], most: int
    ) -> None:
        self._work = work
        self._size = size
        self._most = most
        self._waiting: list[_Call[K, T, R]] = []
        self._turn = asyncio.Lock()

    async def run(self, key: K, items: Sequence[T]) -> Sequence[R]:
        """The results for these items. Raises what ``work`` raises for the batch that they are in."""
        call: _Call[K, T, R] = _Call(key, items, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        try:
            async with self._turn:
                # It may have joined a batch while it waited for its turn. A call that is cancelled does not take its
                # batch with it.
                if call in self._waiting:
                    await asyncio.shield(asyncio.create_task(self._run_batch(self._next_batch())))
            return await call.done
        finally:
            self._waiting = [one for one in self._waiting if one is not call]

    def _next_batch(self) -> list[_Call[K, T, R]]:
        batch: list[_Call[K, T, R]] = []
        total = 0
        for call in self._waiting:
            if batch and call.key != batch[0].key:
                continue
            total += sum(map(self._size, call.items))
            if batch and total > self._most:
                break
            batch.append(call)
        self._waiting = [call for call in self._waiting if call not in batch]
        return batch

    async def _run_batch(self, batch: Sequence[_Call[K, T, R]]) -> None:
        try:
            results = iter(await self._work(batch[0].key, [item for call in batch for item in call.items]))
        except Exception as error:  # noqa: BLE001 (every call in the batch raises it)
            for call in batch:
                if not call.done.done():
                    call.done.set_exception(error)
            return
        for call in batch:
            own = [next(results) for _ in call.items]
            if not call.done.done():
                call.done.set_result(own)

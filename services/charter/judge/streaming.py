"""Runs pieces of a request side by side and hands over each result when it is finished."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def as_finished(jobs: Iterable[Callable[[], Awaitable[T]]], at_once: int) -> AsyncGenerator[T, None]:
    """Results in the order in which they are finished, with at most ``at_once`` jobs under way.

    The first error ends it. Closing the generator, or an error, cancels the jobs under way.
    """
    waiting = iter(jobs)
    running: set[asyncio.Task[T]] = set()
    try:
        while True:
            for job in waiting:
                running.add(asyncio.ensure_future(_run(job)))
                if len(running) == at_once:
                    break
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _run(job: Callable[[], Awaitable[T]]) -> T:
    return await job()

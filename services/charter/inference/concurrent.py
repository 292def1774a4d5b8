"""Requests of one call that an engine has under way at the same time: none outlives the call."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, TypeVar

R = TypeVar("R")


async def as_finished(requests: Iterable[Coroutine[Any, Any, R]]) -> AsyncGenerator[R, None]:
    """Their results, each when it is there. The rest is cancelled when one fails, or when this is closed."""
    tasks = [asyncio.create_task(request) for request in requests]
    try:
        for finished in asyncio.as_completed(tasks):
            yield await finished
    finally:
        for task in tasks:
            task.cancel()


async def results(requests: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """Their results in order. The rest is cancelled when one fails, or when the caller is cancelled."""
    tasks = [asyncio.create_task(request) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()

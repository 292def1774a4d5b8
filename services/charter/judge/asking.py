"""Asks the judge's model about several things at once: what it cannot be asked fails alone, with its kind."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from charter.inference.engine import RefusedRequestError
from charter.v1 import types_pb2

T = TypeVar("T")
R = TypeVar("R")


async def ask_each(
    ask: Callable[[Sequence[T]], Awaitable[list[R]]],
    items: Sequence[T],
    failed: Callable[[Exception, types_pb2.FailureKind.ValueType], R],
) -> list[R]:
    """What ``ask`` finds of each item, or ``failed`` of why it finds nothing: a model that is away, or refuses one."""
    if not items:
        return []
    try:
        return await ask(items)
    except ConnectionError as error:
        return [failed(error, types_pb2.FAILURE_KIND_UNAVAILABLE) for _ in items]
    except RefusedRequestError as error:
        # One conversation that the model's template refuses must not take the others with it.
        if len(items) == 1:
            return [failed(error, types_pb2.FAILURE_KIND_REFUSED)]
        return [(await ask_each(ask, [item], failed))[0] for item in items]


def in_words(error: Exception) -> str:
    """Why there is nothing."""
    return f"the judge's model cannot be reached: {error}" if isinstance(error, ConnectionError) else str(error)

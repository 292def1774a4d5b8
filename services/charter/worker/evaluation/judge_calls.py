"""Asks a judge service about items, some in each call, and sees that it answers for each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import grpc

from charter.data.prompts import TaskPrompt
from charter.rpc.channel import BATCH, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.stalled import unless_stalled
from charter.v1 import judge_pb2, judge_pb2_grpc
from charter.worker.clients.failed import Failed, unsendable

# Items in one call.
_ITEMS = 32

T = TypeVar("T")
M = TypeVar("M", judge_pb2.ComparisonItem, judge_pb2.AnswerItem)
R = TypeVar("R", judge_pb2.CompareResponse, judge_pb2.ClassifyResponse)


def ask_judge(
    address: str,
    items: Sequence[T],
    message: Callable[[int, T], M],
    call: Callable[["judge_pb2_grpc.JudgeServiceStub", list[M]], Iterable[R]],
    what: str,
) -> Iterator[tuple[T, R | Failed]]:
    """The response to each item as it comes, or why it cannot be sent.

    Args:
        address: of the judge service, host:port.
        items: to ask about.
        message: an item as it is sent, with an id of its own in its call; its place there may be it.
        call: the stream of responses to so many messages.
        what: the responses, in words.

    Raises:
        ServiceError: the service cannot be reached, or leaves items out.
    """
    with connect(address) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        for start in range(0, len(items), _ITEMS):
            left: dict[str, T] = {}
            asked: list[M] = []
            for place, item in enumerate(items[start : start + _ITEMS]):
                one = message(place, item)
                if (failure := unsendable(one)) is not None:
                    yield item, failure
                else:
                    left[one.id] = item
                    asked.append(one)
            if not asked:
                continue
            with explained("judge", address):
                for response in unless_stalled(call(stub, asked), BATCH):
                    yield left.pop(response.item_id), response
            if left:
                problem = f"it left out {len(left)} of {len(asked)} {what}; see its log"
                raise ServiceError("judge", address, grpc.StatusCode.DATA_LOSS, problem)


def known_dimension(prompt: TaskPrompt, constitution: judge_pb2.Constitution) -> str:
    """The prompt's dimension; empty, which stands for all principles, where the constitution has none of it."""
    return prompt.dimension if any(one.dimension == prompt.dimension for one in constitution.principles) else ""

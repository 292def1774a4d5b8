"""Scores by ``PreferenceService.Score``: of the run's own preference service, or of another one."""

import math
import re
from collections.abc import Callable, Sequence

import grpc

from charter.chat import ChatMessage
from charter.rpc.channel import BATCH, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.messages import proto_messages
from charter.rpc.stalled import unless_stalled
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2
from charter.worker.clients.failed import Failed, failed, unsendable
from charter.worker.clients.patience import Patience
from charter.worker.reporter import Reporter

# The contract's limit.
_ITEMS_PER_CALL = 4096

# Scores by the place of what they are for, or why there is none.
Scores = dict[int, preference_pb2.PreferenceServiceScoreResponse | Failed]


def score_elsewhere(
    address: str,
    model: str,
    items: Sequence[tuple[Sequence[ChatMessage], str]],
    reporter: Reporter,
    max_wait_seconds: float,
) -> list[float | Failed]:
    """Score of each (prompt, answer) by a model of any service with ``Score``; an empty ``model`` is its first.

    Raises as ``add_scores``, and as ``Patience.wait`` when the service is away.
    """
    patience = Patience("reward", reporter, max_wait_seconds)
    scores: Scores = {}
    while True:
        try:
            with connect(address) as channel:
                stub = preference_pb2_grpc.PreferenceServiceStub(channel)
                add_scores(scores, "reward", address, stub, items, patience.renew, model=model)
            return in_order(scores)
        except ServiceError as error:
            patience.wait(error)


def add_scores(
    scores: Scores,
    service: str,
    address: str,
    stub: preference_pb2_grpc.PreferenceServiceStub,
    items: Sequence[tuple[Sequence[ChatMessage], str]],
    heard: Callable[[], object],
    *,
    version: int = 0,
    model: str = "",
) -> None:
    """Add the score of each (prompt, answer) that ``scores`` lacks, or why it has none.

    Items that the service refuses by name are asked for no more. What came before an error stays there.

    Args:
        heard: called for each score that comes.
        version: the least weight version that may score.
        model: empty = the service's first.

    Raises:
        ServiceError: the call failed, or no score came for too long.
    """
    asked_for = [
        preference_pb2.ScoreItem(id=str(place), prompt=proto_messages(prompt), answer=answer)
        for place, (prompt, answer) in enumerate(items)
    ]
    scores |= {place: failure for place, item in enumerate(asked_for) if (failure := unsendable(item)) is not None}
    while missing := [place for place in range(len(items)) if place not in scores]:
        asked = missing[:_ITEMS_PER_CALL]
        request = preference_pb2.PreferenceServiceScoreRequest(
            items=[asked_for[place] for place in asked], required_weight_version=version, model=model
        )
        try:
            with explained(service, address):
                for response in unless_stalled(stub.Score(request), BATCH):
                    finite = math.isfinite(response.score)
                    scores[int(response.item_id)] = response if finite else _not_finite(response)
                    heard()
        except ServiceError as error:
            refused = _refused(error, asked)
            if not refused:
                raise
            scores |= refused
        else:
            left_out = failed(types_pb2.FAILURE_KIND_MISSING, f"the {service} service at {address} left it out")
            scores |= {place: left_out for place in asked if place not in scores}


def in_order(scores: Scores) -> list[float | Failed]:
    """The numbers, each at its place."""
    found = (scores[place] for place in sorted(scores))
    return [one if isinstance(one, Failed) else one.score for one in found]


def _not_finite(response: preference_pb2.PreferenceServiceScoreResponse) -> Failed:
    return failed(types_pb2.FAILURE_KIND_UNCLEAR, f"its score is {response.score}")


def _refused(error: ServiceError, asked: Sequence[int]) -> dict[int, Failed]:
    """The items that were refused, by place; none unless single items are all that is wrong with a request."""
    if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
        return {}
    found: dict[int, Failed] = {}
    for one in error.violations:
        item = re.match(r"items\[(\d+)\]", one.field)
        if item is None or int(item[1]) >= len(asked):
            return {}
        kinds = types_pb2.FailureKind.DESCRIPTOR.values_by_name
        kind = f"FAILURE_KIND_{one.reason}" if f"FAILURE_KIND_{one.reason}" in kinds else "FAILURE_KIND_REFUSED"
        found[asked[int(item[1])]] = failed(types_pb2.FailureKind.Value(kind), one.description)
    return found

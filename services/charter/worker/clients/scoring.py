"""Scores by ``PreferenceService.Score``: of the run's own preference service, or of another one."""

from collections.abc import Callable, Sequence

import numpy as np

from charter.chat import ChatMessage
from charter.rpc.channel import BATCH, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.messages import proto_messages
from charter.rpc.stalled import unless_stalled
from charter.v1 import preference_pb2, preference_pb2_grpc
from charter.worker.clients.patience import Patience
from charter.worker.errors import RunError
from charter.worker.reporter import Reporter

# The contract's limit.
_ITEMS_PER_CALL = 4096

# Scores by the place of what they are for.
Scores = dict[int, preference_pb2.PreferenceServiceScoreResponse]


def score_elsewhere(
    address: str,
    model: str,
    items: Sequence[tuple[Sequence[ChatMessage], str]],
    reporter: Reporter,
    max_wait_seconds: float,
) -> list[float]:
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
            return [scores[place].score for place in range(len(items))]
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
    """Add the score of each (prompt, answer) that ``scores`` lacks. What came before an error stays there.

    Args:
        heard: called for each score that comes.
        version: the least weight version that may score.
        model: empty = the service's first.

    Raises:
        ServiceError: the call failed, or no score came for too long.
        RunError: a score is missing or not finite, which is never a number.
    """
    while missing := [place for place in range(len(items)) if place not in scores]:
        asked = missing[:_ITEMS_PER_CALL]
        request = preference_pb2.PreferenceServiceScoreRequest(
            items=[
                preference_pb2.ScoreItem(id=str(place), prompt=proto_messages(items[place][0]), answer=items[place][1])
                for place in asked
            ],
            required_weight_version=version,
            model=model,
        )
        with explained(service, address):
            for response in unless_stalled(stub.Score(request), BATCH):
                if not np.isfinite(response.score):
                    raise RunError(
                        f"the {service} service at {address} gave the score {response.score}, so that nothing can be "
                        "learned from it. If it is the preference model's, look at preference_fit.json and lower "
                        "preference_model.learning_rate"
                    )
                scores[int(response.item_id)] = response
                heard()
        if left := sum(place not in scores for place in asked):
            raise RunError(f"the {service} service at {address} left out {left} of {len(asked)} scores; see its log")

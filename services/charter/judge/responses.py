"""Ratings and kinds of answers to the wire, counted on the way."""

from collections.abc import Sequence

from charter.judge import metrics
from charter.judge.judging import usage_proto
from charter.judge.rating import RatedAnswer, Rating
from charter.judge.replies import Reply
from charter.v1 import judge_pb2


def score_response(
    item_id: str, by_principle: Sequence[RatedAnswer], found: Rating
) -> judge_pb2.JudgeServiceScoreResponse:
    """One rating."""
    usage = usage_proto(found.usage)
    metrics.RATINGS.labels("false" if found.failure else "true").inc()
    metrics.observe_tokens(usage)
    return judge_pb2.JudgeServiceScoreResponse(
        item_id=item_id,
        rated=not found.failure,
        score=None if found.failure else found.score,
        distribution=found.distribution,
        principle_id=by_principle[0].principle.id,
        principle_ids=[one.principle.id for one in by_principle],
        failure=found.failure,
        failure_kind=found.kind,
        usage=usage,
        without_logprobs=found.written,
    )


def classify_response(item_id: str, by_principle: Sequence[RatedAnswer], found: Reply) -> judge_pb2.ClassifyResponse:
    """What one answer does with its request."""
    usage = usage_proto(found.usage)
    metrics.observe_tokens(usage)
    likeliest = max(range(len(found.distribution)), key=found.distribution.__getitem__, default=-1)
    return judge_pb2.ClassifyResponse(
        item_id=item_id,
        distribution=found.distribution,
        kind=judge_pb2.ReplyKind.ValueType(likeliest + 1),
        principle_ids=[one.principle.id for one in by_principle],
        failure=found.failure,
        failure_kind=found.kind,
        usage=usage,
        without_logprobs=found.written,
    )

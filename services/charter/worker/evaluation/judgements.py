"""Asks a judge service to compare the answers of two models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from charter.data.prompts import TaskPrompt
from charter.rpc.channel import BATCH, QUICK, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.messages import proto_messages
from charter.rpc.stalled import unless_stalled
from charter.v1 import judge_pb2, judge_pb2_grpc
from charter.worker.clients.failed import unjudged, unsendable

# Pairs in one call.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to a prompt."""

    prompt: TaskPrompt
    sample: int
    answer_a: str
    answer_b: str


@dataclass(frozen=True, slots=True)
class ServedJudge:
    """What judges, and by what."""

    info: judge_pb2.JudgeServiceGetModelInfoResponse
    constitution: judge_pb2.Constitution


def served_judge(address: str) -> ServedJudge:
    """What a judge service serves. Raises ``ServiceError``."""
    with connect(address) as channel, explained("judge", address):
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        info = stub.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK)
        return ServedJudge(info, stub.GetConstitution(judge_pb2.GetConstitutionRequest(), timeout=QUICK).constitution)


def judgements(
    address: str, pairs: Sequence[Pair], options: judge_pb2.JudgingOptions, constitution: judge_pb2.Constitution
) -> Iterator[tuple[Pair, judge_pb2.Judgement]]:
    """The judgement of each pair as it comes; failed ones carry their outcome. ``pairs`` are of the same two models.

    A pair is known to the judge by prompt and sample alone, so that it draws the same principles for every two models.
    Raises ``ServiceError``.
    """
    dimensions = {principle.dimension for principle in constitution.principles}
    with connect(address) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        for start in range(0, len(pairs), _BATCH):
            left = {f"{pair.prompt.key}-{pair.sample}": pair for pair in pairs[start : start + _BATCH]}
            items = []
            for name, pair in list(left.items()):
                item = _item(name, pair, dimensions)
                if (failure := unsendable(item)) is not None:
                    yield left.pop(name), unjudged(failure)
                else:
                    items.append(item)
            if not items:
                continue
            request = judge_pb2.CompareRequest(items=items, options=options)
            with explained("judge", address):
                for response in unless_stalled(stub.Compare(request), BATCH):
                    yield left.pop(response.item_id), response.judgement
            if left:
                problem = f"it left out {len(left)} of {len(items)} judgements; see its log"
                raise ServiceError("judge", address, grpc.StatusCode.DATA_LOSS, problem)


def _item(name: str, pair: Pair, dimensions: set[str]) -> judge_pb2.ComparisonItem:
    return judge_pb2.ComparisonItem(
        id=name,
        prompt=proto_messages(pair.prompt.messages),
        answer_a=pair.answer_a,
        answer_b=pair.answer_b,
        # All principles where the constitution has none of the prompt's own dimension.
        dimension=pair.prompt.dimension if pair.prompt.dimension in dimensions else "",
    )

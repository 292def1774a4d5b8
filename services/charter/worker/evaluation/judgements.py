"""Asks a judge service to compare the answers of two models."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from charter.data.prompts import TaskPrompt
from charter.rpc.channel import QUICK, connect
from charter.rpc.errors import explained
from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, judge_pb2_grpc
from charter.worker.clients.failed import Failed, unjudged
from charter.worker.evaluation.judge_calls import ask_judge, known_dimension


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

    def message(_: int, pair: Pair) -> judge_pb2.ComparisonItem:
        return judge_pb2.ComparisonItem(
            id=f"{pair.prompt.key}-{pair.sample}",
            prompt=proto_messages(pair.prompt.messages),
            answer_a=pair.answer_a,
            answer_b=pair.answer_b,
            dimension=known_dimension(pair.prompt, constitution),
        )

    def call(
        stub: "judge_pb2_grpc.JudgeServiceStub", items: list[judge_pb2.ComparisonItem]
    ) -> Iterable[judge_pb2.CompareResponse]:
        return stub.Compare(judge_pb2.CompareRequest(items=items, options=options))

    for pair, response in ask_judge(address, pairs, message, call, "judgements"):
        yield pair, unjudged(response) if isinstance(response, Failed) else response.judgement

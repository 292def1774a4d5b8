"""The judge's replicas as the worker sees them: what they judge by, and their judgements and ratings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc

from charter.rpc.channel import QUICK
from charter.rpc.errors import explained
from charter.v1 import judge_pb2, judge_pb2_grpc, run_pb2
from charter.worker.clients.failed import Failed, failed, unjudged, unsendable
from charter.worker.clients.replica import Replica
from charter.worker.clients.replicas import Replicas
from charter.worker.clients.spread import Work, spread, tokens_of
from charter.worker.errors import RunError
from charter.worker.reporter import Reporter

V = TypeVar("V")


class JudgeClient:
    """All replicas of the judge; ``close`` at the end. ``reporter`` as ``PolicyClient``'s."""

    def __init__(
        self, addresses: run_pb2.ServiceAddresses, reporter: Reporter, *, max_wait_seconds: float, sleeps: bool
    ) -> None:
        self.replicas = Replicas(
            "judge",
            [(addresses.judge, addresses.judge_control), *((address, "") for address in addresses.judge_replicas)],
            "charter.v1.JudgeService",
            reporter,
            max_wait_seconds=max_wait_seconds,
            # A judge without a control port has no memory on this GPU.
            sleeps=sleeps and addresses.judge_control != "",
        )

    def close(self) -> None:
        """Close every channel."""
        self.replicas.close()

    def info(self) -> judge_pb2.JudgeServiceGetModelInfoResponse:
        """The judge's model and its default method. Raises ``RunError`` when its replicas differ."""
        request = judge_pb2.JudgeServiceGetModelInfoRequest()
        return self._same_of_all(lambda stub: stub.GetModelInfo(request, timeout=QUICK))

    def constitution(self) -> judge_pb2.Constitution:
        """What the judge judges by. Raises ``RunError`` when its replicas differ."""
        request = judge_pb2.GetConstitutionRequest()
        return self._same_of_all(lambda stub: stub.GetConstitution(request, timeout=QUICK).constitution)

    def _same_of_all(self, ask: Callable[[judge_pb2_grpc.JudgeServiceStub], V]) -> V:
        def answer(judge: Replica) -> tuple[str, V]:
            with explained("judge", judge.address.main):
                return judge.address.main, ask(judge_pb2_grpc.JudgeServiceStub(judge.channel))

        self.replicas.contacted()
        found = sorted(self.replicas.some(answer), key=lambda one: one[0])
        first, same = found[0]
        for address, other in found[1:]:
            if other != same:
                raise RunError(
                    f"the judges at {first} and {address} differ in model, method or constitution: start them alike"
                )
        return same

    def compare(
        self, items: Sequence[judge_pb2.ComparisonItem], options: judge_pb2.JudgingOptions
    ) -> Mapping[str, judge_pb2.Judgement]:
        """The judgement of each item, by its id; failed ones carry their outcome. Spread over the judges.

        Raises ``ServiceError`` when the request is refused, ``RunError`` when a judgement is missing.
        """
        refused = {item.id: unjudged(failure) for item in items if (failure := unsendable(item)) is not None}
        asked_for = [item for item in items if item.id not in refused]

        def ask(channel: grpc.Channel, chosen: Sequence[int]) -> Any:
            request = judge_pb2.CompareRequest(items=[asked_for[index] for index in chosen], options=options)
            return judge_pb2_grpc.JudgeServiceStub(channel).Compare(request)

        ids = {item.id: index for index, item in enumerate(asked_for)}

        def read(
            _asked: Sequence[int], _replica: Replica, response: judge_pb2.CompareResponse
        ) -> tuple[int, int, judge_pb2.Judgement]:
            return ids[response.item_id], 0, response.judgement

        costs = [
            tokens_of(*(message.content for message in item.prompt), item.answer_a, item.answer_b) for item in asked_for
        ]
        self.replicas.wake()
        judged = spread(self.replicas, Work(costs, 1, ask, read))
        return refused | {item.id: judgement for item, (judgement,) in zip(asked_for, judged, strict=True)}

    def rate(self, items: Sequence[judge_pb2.AnswerItem], options: judge_pb2.JudgingOptions) -> list[float | Failed]:
        """The judge's rating of each answer, -1 to 1, or why it has none; raises as ``compare``."""
        refused = {item.id: failure for item in items if (failure := unsendable(item)) is not None}
        asked_for = [item for item in items if item.id not in refused]

        def ask(channel: grpc.Channel, chosen: Sequence[int]) -> Any:
            request = judge_pb2.JudgeServiceScoreRequest(items=[asked_for[index] for index in chosen], options=options)
            return judge_pb2_grpc.JudgeServiceStub(channel).Score(request)

        ids = {item.id: index for index, item in enumerate(asked_for)}

        def read(
            _asked: Sequence[int], _replica: Replica, response: judge_pb2.JudgeServiceScoreResponse
        ) -> tuple[int, int, float | Failed]:
            rating = response.score if response.rated else failed(response.failure_kind, response.failure)
            return ids[response.item_id], 0, rating

        costs = [tokens_of(*(message.content for message in item.prompt), item.answer) for item in asked_for]
        self.replicas.wake()
        ratings = spread(self.replicas, Work(costs, 1, ask, read))
        rated = {item.id: rating for item, (rating,) in zip(asked_for, ratings, strict=True)}
        return [refused[item.id] if item.id in refused else rated[item.id] for item in items]

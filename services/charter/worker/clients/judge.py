"""The judge's replicas as the worker sees them: what they judge by, and their judgements and ratings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

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

Item = TypeVar("Item", judge_pb2.ComparisonItem, judge_pb2.AnswerItem)
V = TypeVar("V")


class WrittenText(NamedTuple):
    """A critique or a revision, the principle that it is by, and whether the token limit ended it."""

    text: str
    principle_id: str
    cut_off: bool


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
        judged = self._each(
            items,
            lambda item: (item.answer_a, item.answer_b),
            lambda stub, chosen: stub.Compare(judge_pb2.CompareRequest(items=chosen, options=options)),
            lambda response: response.judgement,
        )
        return {name: unjudged(one) if isinstance(one, Failed) else one for name, one in judged.items()}

    def rate(self, items: Sequence[judge_pb2.AnswerItem], options: judge_pb2.JudgingOptions) -> list[float | Failed]:
        """The judge's rating of each answer, -1 to 1, or why it has none; raises as ``compare``."""

        def rating(response: judge_pb2.JudgeServiceScoreResponse) -> float | Failed:
            return response.score if response.rated else failed(response.failure_kind, response.failure)

        rated = self._each(
            items,
            lambda item: (item.answer,),
            lambda stub, chosen: stub.Score(judge_pb2.JudgeServiceScoreRequest(items=chosen, options=options)),
            rating,
        )
        return [rated[item.id] for item in items]

    def critique(
        self,
        items: Sequence[judge_pb2.AnswerItem],
        options: judge_pb2.JudgingOptions,
        limits: judge_pb2.SamplingLimits,
    ) -> list[WrittenText | Failed]:
        """A critique of each answer, or why there is none; raises as ``compare``."""
        return self._written(
            items,
            lambda stub, chosen: stub.Critique(judge_pb2.CritiqueRequest(items=chosen, options=options, limits=limits)),
            lambda response: str(response.critique),
            limits,
        )

    def revise(
        self,
        items: Sequence[judge_pb2.AnswerItem],
        options: judge_pb2.JudgingOptions,
        limits: judge_pb2.SamplingLimits,
    ) -> list[WrittenText | Failed]:
        """A revision of each answer by its critique, or why there is none; raises as ``compare``."""
        return self._written(
            items,
            lambda stub, chosen: stub.Revise(judge_pb2.ReviseRequest(items=chosen, options=options, limits=limits)),
            lambda response: str(response.revision),
            limits,
        )

    def _written(
        self,
        items: Sequence[judge_pb2.AnswerItem],
        call: Callable[[judge_pb2_grpc.JudgeServiceStub, Sequence[judge_pb2.AnswerItem]], Any],
        text: Callable[[Any], str],
        limits: judge_pb2.SamplingLimits,
    ) -> list[WrittenText | Failed]:
        def result(response: Any) -> WrittenText | Failed:
            if response.failure:
                return failed(response.failure_kind, response.failure)
            return WrittenText(text(response), response.principle_id, response.cut_off)

        found = self._each(items, lambda item: (item.answer, item.critique), call, result, limits.max_new_tokens)
        return [found[item.id] for item in items]

    def _each(
        self,
        items: Sequence[Item],
        texts: Callable[[Item], Sequence[str]],
        call: Callable[[judge_pb2_grpc.JudgeServiceStub, Sequence[Item]], Any],
        result: Callable[[Any], V],
        written_tokens: int = 0,
    ) -> dict[str, V | Failed]:
        """What ``result`` makes of the response to each item, by the item's id; one that cannot be sent has failed.

        ``texts`` are those of an item behind its prompt, ``written_tokens`` the most that the judge writes of one.
        """
        found: dict[str, V | Failed] = {item.id: why for item in items if (why := unsendable(item)) is not None}
        asked_for = [item for item in items if item.id not in found]
        ids = {item.id: index for index, item in enumerate(asked_for)}

        def ask(channel: grpc.Channel, chosen: Sequence[int]) -> Any:
            return call(judge_pb2_grpc.JudgeServiceStub(channel), [asked_for[index] for index in chosen])

        def read(_asked: Sequence[int], _replica: Replica, response: Any) -> tuple[int, int, V]:
            return ids[response.item_id], 0, result(response)

        costs = [
            tokens_of(*(message.content for message in item.prompt), *texts(item)) + written_tokens
            for item in asked_for
        ]
        self.replicas.wake()
        results = spread(self.replicas, Work(costs, 1, ask, read))
        return found | {item.id: one for item, (one,) in zip(asked_for, results, strict=True)}

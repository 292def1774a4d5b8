"""Asks a judge service what answers do with their requests: whether they answer or decline."""

from collections.abc import Iterable, Iterator, Sequence

from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, judge_pb2_grpc
from charter.worker.clients.failed import Failed, failed
from charter.worker.evaluation.judge_calls import ask_judge, known_dimension
from charter.worker.evaluation.likelihood import Said


def replies(
    address: str, items: Sequence[Said], options: judge_pb2.JudgingOptions, constitution: judge_pb2.Constitution
) -> Iterator[tuple[Said, Sequence[float] | Failed]]:
    """P(ReplyKind = i + 1) of each answer as it comes, or why there is none.

    The answers to a prompt, whoever gave them, are asked about by the same principles. Raises ``ServiceError``.
    """

    def message(place: int, item: Said) -> judge_pb2.AnswerItem:
        return judge_pb2.AnswerItem(
            id=str(place),
            prompt=proto_messages(item.prompt.messages),
            answer=item.text,
            dimension=known_dimension(item.prompt, constitution),
            group=item.prompt.key,
        )

    def call(
        stub: "judge_pb2_grpc.JudgeServiceStub", asked: list[judge_pb2.AnswerItem]
    ) -> Iterable[judge_pb2.ClassifyResponse]:
        return stub.Classify(judge_pb2.ClassifyRequest(items=asked, options=options))

    for item, response in ask_judge(address, items, message, call, "answers"):
        if isinstance(response, Failed):
            yield item, response
        elif response.failure:
            yield item, failed(response.failure_kind, response.failure)
        else:
            yield item, list(response.distribution)

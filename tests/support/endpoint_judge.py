"""A judge in front of a test's endpoint, and how it is asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from charter.chat import ChatMessage
from charter.judge.server import JudgeConfig, build
from charter.rpc.channel import QUICK, connect
from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, judge_pb2_grpc

from tests.support.endpoint import MODEL, Answer, Body, Endpoint, Failure, endpoint
from tests.support.harness import running

CONSTITUTION = """\
name: short
version: "1"
principles:
  - id: kind
    dimension: helpful
    compare: Which is kinder?
    critique: Say what is unkind.
    revise: Make it kind.
    follow: Be kind.
    oppose: Be rude.
"""
DEADLINE = QUICK * 6


@contextmanager
def judge(
    tmp_path: Path,
    reply: Callable[[Body], Answer | Failure],
    method: str = "choice",
    constitution: str = CONSTITUTION,
    **settings: int,
) -> Iterator[tuple[judge_pb2_grpc.JudgeServiceStub, Endpoint]]:
    """A judge whose model answers by ``reply``."""
    (tmp_path / "constitution.yaml").write_text(constitution)
    with endpoint(reply) as served:
        config = JudgeConfig(
            MODEL,
            tmp_path / "constitution.yaml",
            "openai",
            method,
            engine_settings={"endpoint": served.url, **settings},
        )
        with running(build(config)) as addresses, connect(addresses.main) as channel:
            yield judge_pb2_grpc.JudgeServiceStub(channel), served


def item(name: str, a: str, b: str) -> judge_pb2.ComparisonItem:
    """A pair to compare."""
    messages = proto_messages([ChatMessage("user", "How are you?")])
    return judge_pb2.ComparisonItem(id=name, prompt=messages, answer_a=a, answer_b=b)


def compare(
    stub: judge_pb2_grpc.JudgeServiceStub, *items: judge_pb2.ComparisonItem, **options: Any
) -> dict[str, judge_pb2.Judgement]:
    """The judgements by the items' names."""
    request = judge_pb2.CompareRequest(items=items, options=judge_pb2.JudgingOptions(**options))
    return {response.item_id: response.judgement for response in stub.Compare(request, timeout=DEADLINE)}

"""Which replica gets what, by the tokens that each still owes, and what becomes of calls that give nothing."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from charter.policy.server import PolicyConfig, build
from charter.rpc.channel import connect
from charter.rpc.errors import ServiceError
from charter.rpc.stalled import StalledError, unless_stalled
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2
from charter.worker.clients.replica import Replica
from charter.worker.clients.spread import Work, spread

from tests.integration.policy.test_weight_planes import Client, random_tensors
from tests.support.harness import running

SECONDS = 60.0
SILENCE = 0.3


def generate(channel: grpc.Channel, items: Sequence[int], max_new_tokens: int = 4) -> Any:
    """A call for one answer to each item, whose text is its number."""
    request = policy_pb2.GenerateRequest(
        prompts=[
            policy_pb2.GenerationPrompt(
                messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=str(item))], seed=item
            )
            for item in items
        ],
        sampling=policy_pb2.SamplingParameters(max_new_tokens=max_new_tokens),
    )
    return policy_pb2_grpc.PolicyServiceStub(channel).Generate(request)


def read(items: Sequence[int], replica: Replica, response: policy_pb2.GenerateResponse) -> tuple[int, int, int]:
    return items[response.prompt_index], response.sample_index, items[response.prompt_index]


@contextmanager
def one_replica(folder: Path, **settings: Any) -> Iterator[Client]:
    """A fake policy with these settings, brought to version 1, as the worker's client sees it."""
    with (
        running(build(PolicyConfig("fake", folder / "staging", "fake", settings))) as at,
        Client(folder, [(at.main, at.control)]) as client,
    ):
        client.services.policy.send(random_tensors(1, 1), 1)
        yield client


def test_items_go_to_the_replica_with_the_least_outstanding_tokens(tmp_path: Path) -> None:
    """One long answer weighs as much as ten short ones; turns would give each replica five or six of them."""
    costs = [100, *[10] * 10]
    asked: dict[grpc.Channel, list[int]] = {}

    def ask(channel: grpc.Channel, items: Any) -> Any:
        # Later calls take over what another replica owes.
        asked.setdefault(channel, list(items))
        return generate(channel, items)

    with ExitStack() as stack:
        rooms = [build(PolicyConfig("fake", tmp_path / name, "fake")) for name in ("a", "b")]
        replicas = [stack.enter_context(running(room)) for room in rooms]
        client = stack.enter_context(Client(tmp_path, [(one.main, one.control) for one in replicas]))
        client.services.policy.send(random_tensors(1, 1), 1)
        client.until_ready(2)
        found = spread(client.services.policy.replicas, Work(costs, 1, ask, read))
    assert found == [[item] for item in range(11)]
    assert sorted(asked.values()) == [[0], list(range(1, 11))]


def test_a_call_that_stalls_keeps_what_came_and_only_the_rest_is_asked_again(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def ask(channel: grpc.Channel, items: Sequence[int]) -> Any:
        asked.append(list(items))
        return generate(channel, items)

    with one_replica(tmp_path, stall_after=1) as client:
        found = spread(client.services.policy.replicas, Work([1] * 3, 1, ask, read, silence_seconds=SILENCE))
    assert found == [[0], [1], [2]]
    assert [len(items) for items in asked] == [3, 2, 1]


@pytest.mark.parametrize(
    ("settings", "most", "error"),
    [
        # Nothing ever comes.
        (
            {"latency_seconds": 10 * SECONDS},
            3,
            r"did not answer in time \(nothing came for 0.3 s; this happened 3 times",
        ),
        # A fault of the engine, every time.
        ({"fail_every": 1}, 3, "INTERNAL.*this happened 3 times"),
    ],
)
def test_what_never_finishes_is_an_error_after_a_few_times(
    tmp_path: Path, settings: dict[str, Any], most: int, error: str
) -> None:
    asked: list[list[int]] = []

    def ask(channel: grpc.Channel, items: Sequence[int]) -> Any:
        asked.append(list(items))
        return generate(channel, items)

    work = Work([1], 1, ask, read, silence_seconds=SILENCE)
    with one_replica(tmp_path, **settings) as client, pytest.raises(ServiceError, match=error):
        spread(client.services.policy.replicas, work)
    assert asked == [[0]] * most


def test_what_takes_its_replica_away_every_time_is_an_error_in_the_end(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def ask(channel: grpc.Channel, items: Sequence[int]) -> Any:
        asked.append(list(items))
        # Nobody is there: for this item its replica dies.
        with connect("127.0.0.1:9") as nobody:
            return list(generate(nobody, items))

    work = Work([1], 1, ask, read, most_losses=2)
    with one_replica(tmp_path) as client, pytest.raises(ServiceError, match="this happened 2 times") as caught:
        spread(client.services.policy.replicas, work)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert asked == [[0]] * 2


def test_only_silence_ends_a_call_and_the_readers_own_time_is_none(tmp_path: Path) -> None:
    with one_replica(tmp_path, stall_after=2) as client:
        (address, _), *_ = client.services.policy.info()
        with connect(address) as channel:
            responses = unless_stalled(generate(channel, [0, 1, 2]), SILENCE)
            assert next(responses).prompt_index == 0
            time.sleep(2 * SILENCE)
            assert next(responses).prompt_index == 1
            with pytest.raises(StalledError, match="nothing came for"):
                next(responses)

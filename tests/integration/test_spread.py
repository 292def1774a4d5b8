"""Which replica gets what: by the tokens that each still owes, over real channels."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from charter.policy.server import PolicyConfig, build
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2
from charter.worker.clients.replica import Replica
from charter.worker.clients.spread import Work, spread

from tests.integration.test_weight_planes import Client, random_tensors
from tests.support.harness import running

SECONDS = 60.0


def test_items_go_to_the_replica_with_the_least_outstanding_tokens(tmp_path: Path) -> None:
    """One long answer weighs as much as ten short ones; turns would give each replica five or six of them."""
    costs = [100, *[10] * 10]
    asked: dict[grpc.Channel, list[int]] = {}

    def ask(channel: grpc.Channel, items: Any) -> Any:
        # Later calls take over what another replica owes.
        asked.setdefault(channel, list(items))
        request = policy_pb2.GenerateRequest(
            prompts=[
                policy_pb2.GenerationPrompt(
                    messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=str(item))], seed=item
                )
                for item in items
            ],
            sampling=policy_pb2.SamplingParameters(max_new_tokens=4),
        )
        return policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=SECONDS)

    def read(items: Any, replica: Replica, response: policy_pb2.GenerateResponse) -> tuple[int, int, int]:
        return items[response.prompt_index], response.sample_index, items[response.prompt_index]

    with ExitStack() as stack:
        rooms = [build(PolicyConfig("fake", tmp_path / name, "fake")) for name in ("a", "b")]
        replicas = [stack.enter_context(running(room)) for room in rooms]
        client = stack.enter_context(Client(tmp_path, [(one.main, one.control) for one in replicas]))
        client.services.send_policy(random_tensors(1, 1), 1)
        client.until_ready(2)
        found = spread(client.services._policies, Work(costs, 1, ask, read))
    assert found == [[item] for item in range(11)]
    assert sorted(asked.values()) == [[0], list(range(1, 11))]

"""Preference service and trainer die with calls in flight; policy and judge do so in ``test_replicas``."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import grpc
from charter.rpc.channel import connect
from charter.v1 import preference_pb2, preference_pb2_grpc, trainer_pb2, trainer_pb2_grpc, types_pb2

from tests.support.processes import Process

# Long past what ends the calls; the test fails when one is under way for twice as long.
SECONDS = 30.0

Call = Callable[[], object]


def preference_calls(channel: grpc.Channel) -> dict[str, Call]:
    stub = preference_pb2_grpc.PreferenceServiceStub(channel)
    question = [types_pb2.Message(role=types_pb2.ROLE_USER, content="Well?")]
    scored = preference_pb2.PreferenceServiceScoreRequest(
        items=[preference_pb2.ScoreItem(id="1", prompt=question, answer="Yes.")]
    )
    return {
        "Score": lambda: list(stub.Score(scored, timeout=SECONDS)),
        "StreamComparisons": lambda: list(
            stub.StreamComparisons(preference_pb2.StreamComparisonsRequest(), timeout=SECONDS)
        ),
        "GetStats": lambda: stub.GetStats(preference_pb2.GetStatsRequest(), timeout=SECONDS),
    }


def trainer_calls(channel: grpc.Channel) -> dict[str, Call]:
    stub = trainer_pb2_grpc.TrainerServiceStub(channel)
    return {
        "WatchRun": lambda: list(stub.WatchRun(trainer_pb2.WatchRunRequest(run_id="none"), timeout=SECONDS)),
        "ReadArtifact": lambda: list(
            stub.ReadArtifact(trainer_pb2.ReadArtifactRequest(run_id="none", path="x"), timeout=SECONDS)
        ),
        "ListRuns": lambda: stub.ListRuns(trainer_pb2.ListRunsRequest(), timeout=SECONDS),
    }


def ended(call: Call) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined,no-any-return]
    return grpc.StatusCode.OK


def test_calls_in_flight_end_when_the_service_is_killed(tmp_path: Path, tiny_model: Path) -> None:
    with ExitStack() as stack:
        services = {
            stack.enter_context(Process(tmp_path, "preference", f"--model={tiny_model}")): preference_calls,
            stack.enter_context(Process(tmp_path, "trainer")): trainer_calls,
        }
        calls: dict[str, Call] = {}
        for service, make in services.items():
            service.wait_serving()
            calls |= make(stack.enter_context(connect(service.main)))
        # On connections that are there, to servers that do not answer any more.
        for call in calls.values():
            assert ended(call) is not grpc.StatusCode.UNAVAILABLE
        for service in services:
            service.suspend()
        codes: dict[str, grpc.StatusCode] = {}

        def follow(name: str) -> None:
            codes[name] = ended(calls[name])

        threads = [Thread(target=follow, args=(name,), daemon=True) for name in calls]
        for thread in threads:
            thread.start()
        for service in services:
            service.kill()
        for thread in threads:
            thread.join(2 * SECONDS)
    assert codes == dict.fromkeys(calls, grpc.StatusCode.UNAVAILABLE)

"""Calls are counted on the client's side too, and counting holds no stream open that its reader has dropped."""

import threading
from collections.abc import Iterator

import grpc
import pytest
from charter.policy import server
from charter.rpc import metrics
from charter.rpc.channel import connect
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2
from prometheus_client import REGISTRY

from tests.support.harness import running

WAIT_SECONDS = 60.0
LABELS = {"grpc_service": "charter.v1.PolicyService"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A policy that hangs after the first sample of a call."""
    config = server.PolicyConfig("fake", tmp_path_factory.mktemp("staging"), "fake", {"stall_after": 1})
    with running(server.build(config)) as at:
        yield at.main


def request(samples: int) -> policy_pb2.GenerateRequest:
    prompt = policy_pb2.GenerationPrompt(messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Hello")])
    sampling = policy_pb2.SamplingParameters(max_new_tokens=5)
    return policy_pb2.GenerateRequest(prompts=[prompt], sampling=sampling, samples_per_prompt=samples)


def count(method: str, code: str, kind: str) -> float:
    labels = {**LABELS, "grpc_type": kind, "grpc_method": method, "grpc_code": code}
    return REGISTRY.get_sample_value("grpc_client_handled_total", labels) or 0.0


def test_calls_are_counted_by_how_they_ended(address: str) -> None:
    before = {code: count("GetModelInfo", code, "unary") for code in ("OK", "Unavailable")}
    invalid = count("Generate", "InvalidArgument", "server_stream")
    with connect(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        stub.GetModelInfo(policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=WAIT_SECONDS)
        with pytest.raises(grpc.RpcError):
            list(stub.Generate(policy_pb2.GenerateRequest(), timeout=WAIT_SECONDS))
    with connect("127.0.0.1:1") as nobody, pytest.raises(grpc.RpcError):
        policy_pb2_grpc.PolicyServiceStub(nobody).GetModelInfo(
            policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=WAIT_SECONDS
        )
    assert count("GetModelInfo", "OK", "unary") == before["OK"] + 1
    assert count("GetModelInfo", "Unavailable", "unary") == before["Unavailable"] + 1
    assert count("Generate", "InvalidArgument", "server_stream") == invalid + 1


def test_a_dropped_stream_is_cancelled_and_counted(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    counter = metrics.CLIENT_HANDLED.labels("server_stream", "charter.v1.PolicyService", "Generate", "Cancelled")
    counted = counter.inc

    def count_and_tell() -> None:
        counted()
        ended.set()

    monkeypatch.setattr(counter, "inc", count_and_tell)
    before = count("Generate", "Cancelled", "server_stream")
    with connect(address) as channel:
        stream = policy_pb2_grpc.PolicyServiceStub(channel).Generate(request(samples=2), timeout=WAIT_SECONDS * 10)
        assert next(stream).sample.token_ids
        del stream
        assert ended.wait(WAIT_SECONDS)
    assert count("Generate", "Cancelled", "server_stream") == before + 1

"""Traces reach a collector by the standard variables alone, and log lines name run, step and trace."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import collecting

ROOT = Path(__file__).resolve().parents[3]

# A worker's step that asks a policy service of the same process; every second call of its engine fails.
PROGRAM = """
import sys
from pathlib import Path

import grpc
from charter.policy import server
from charter.rpc.channel import connect
from charter.rpc.logs import configure_logging, working_on
from charter.rpc.tracing import configure_tracing, traced
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2
from tests.support.harness import running

configure_logging("test")
configure_tracing("test")
prompt = policy_pb2.GenerationPrompt(messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Hello")])
request = policy_pb2.GenerateRequest(prompts=[prompt], sampling=policy_pb2.SamplingParameters(max_new_tokens=5))
config = server.PolicyConfig("fake", Path(sys.argv[1]), "fake", {"fail_every": 2})
with running(server.build(config)) as at, connect(at.main) as channel:
    stub = policy_pb2_grpc.PolicyServiceStub(channel)
    with working_on(run="r-1"), working_on(step="7"), traced("ppo.step", run="r-1", step=7):
        assert len(list(stub.Generate(request, timeout=60))) == 1
        try:
            list(stub.Generate(request, timeout=60))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INTERNAL
"""


def run_program(folder: Path, **environment: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, log lines and all of stderr."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder],
        env={**inherited, "PYTHONPATH": f"{ROOT / 'services'}:{ROOT}", **environment},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    return result.returncode, lines, result.stderr


def test_a_step_is_one_trace_through_client_and_server(tmp_path: Path) -> None:
    with collecting() as (endpoint, collector):
        status, logged, words = run_program(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert status == 0, words
    spans = [span for service, span in collector.spans if service == "charter-test"]
    (root,) = [span for span in spans if span.name == "ppo.step"]
    assert not root.parent_span_id
    assert {span.trace_id for span in spans} == {root.trace_id}
    clients = [span for span in spans if span.parent_span_id == root.span_id]
    assert [span.name for span in clients] == ["charter.v1.PolicyService/Generate"] * 2
    servers = [span for span in spans if span.parent_span_id in {one.span_id for one in clients}]
    assert {span.parent_span_id for span in servers} == {one.span_id for one in clients}
    # 2 is an error.
    assert sorted(span.status.code for span in clients) == [0, 2]
    assert sorted(span.status.code for span in servers) == [0, 2]
    (failed,) = [line for line in logged if line["message"] == "call failed"]
    assert (failed["run"], failed["step"]) == ("r-1", "7")
    assert failed["trace_id"] == root.trace_id.hex()
    assert failed["span_id"] in {span.span_id.hex() for span in servers}


def test_nothing_is_traced_unless_asked_for(tmp_path: Path) -> None:
    with collecting() as (endpoint, collector):
        status, logged, words = run_program(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_TRACES_EXPORTER="none")
        assert status == 0, words
        status, logged, words = run_program(tmp_path)
    assert status == 0, words
    assert not collector.spans
    (failed,) = [line for line in logged if line["message"] == "call failed"]
    # The service's line names the caller's run all the same.
    assert (failed["run"], failed["step"]) == ("r-1", "7")
    assert "trace_id" not in failed


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")]
)
def test_what_is_not_there_is_refused(tmp_path: Path, variable: str, value: str) -> None:
    wrong = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", variable: value}
    status, _, words = run_program(tmp_path, **wrong)
    assert status == 1
    assert f"{variable} is {value}" in words

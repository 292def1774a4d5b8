"""Mutual TLS over real channels, with the policy service."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from charter.policy import server as policy
from charter.rpc import tls
from charter.rpc.channel import QUICK, connect
from charter.rpc.lifecycle import Addresses
from charter.v1 import policy_pb2, policy_pb2_grpc, weights_pb2, weights_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.certificates import Authority
from tests.support.harness import running

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def authority() -> Authority:
    return Authority.make()


@pytest.fixture
def folder(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Certificates of this process, which is server and client."""
    made = authority.issue(tmp_path / "certificates")
    monkeypatch.setenv(tls.VARIABLE, str(made))
    return made


@pytest.fixture
def service(folder: Path, tmp_path: Path) -> Iterator[Addresses]:
    with running(policy.build(policy.PolicyConfig("fake", tmp_path / "staging", "fake"))) as addresses:
        yield addresses


def call(address: str) -> str:
    with connect(address) as channel:
        request = policy_pb2.PolicyServiceGetModelInfoRequest()
        return str(policy_pb2_grpc.PolicyServiceStub(channel).GetModelInfo(request, timeout=QUICK).model.model)


def refused(address: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call(address)
    assert isinstance(error.value, grpc.Call)
    return error.value.code()


def test_a_client_of_the_same_authority_is_served_on_both_ports(service: Addresses) -> None:
    assert call(service.main) == "fake"
    with connect(service.control) as channel:
        request = weights_pb2.GetWeightVersionRequest()
        weights_pb2_grpc.WeightServiceStub(channel).GetWeightVersion(request, timeout=QUICK)


def test_strangers_are_refused(service: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tls.VARIABLE)
    assert refused(service.main) == grpc.StatusCode.UNAVAILABLE, "without TLS"
    assert refused(service.control) == grpc.StatusCode.UNAVAILABLE
    other = Authority.make().issue(tmp_path / "other")
    monkeypatch.setenv(tls.VARIABLE, str(other))
    assert refused(service.main) == grpc.StatusCode.UNAVAILABLE, "of another authority"


def test_a_client_without_a_certificate_is_refused(service: Addresses, folder: Path) -> None:
    credentials = grpc.ssl_channel_credentials((folder / "ca.crt").read_bytes())
    with grpc.secure_channel(service.main, credentials) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.GetModelInfo(policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=QUICK)
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_server_of_another_authority_is_not_trusted(service: Addresses, authority: Authority, folder: Path) -> None:
    stranger = Authority.make().issue(folder.parent / "stranger")
    (folder / "ca.crt").write_bytes((stranger / "ca.crt").read_bytes())
    assert refused(service.main) == grpc.StatusCode.UNAVAILABLE


def test_a_server_under_another_name_is_not_trusted(authority: Authority, folder: Path, tmp_path: Path) -> None:
    authority.issue(folder, ("judge",), address="192.0.2.1")
    with running(policy.build(policy.PolicyConfig("fake", tmp_path / "staging", "fake"))) as addresses:
        assert refused(addresses.main) == grpc.StatusCode.UNAVAILABLE


def test_probes_need_no_certificate_and_see_nothing_but_health(service: Addresses) -> None:
    with grpc.insecure_channel(service.health) as channel:
        request = health_pb2.HealthCheckRequest(service="charter.v1.PolicyService")
        assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=QUICK).status == SERVING
        with pytest.raises(grpc.RpcError) as error:
            policy_pb2_grpc.PolicyServiceStub(channel).GetModelInfo(
                policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=QUICK
            )
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_renewed_certificates_are_taken_without_a_restart(service: Addresses, folder: Path) -> None:
    assert call(service.main) == "fake"
    # A whole new authority: were the old files still in use, nothing would match.
    Authority.make().issue(folder)
    assert call(service.main) == "fake"


@pytest.mark.parametrize("missing", ["tls.key", "tls.crt", "ca.crt"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"{tls.VARIABLE} must name a folder.*{missing}"):
        connect("127.0.0.1:1")
    with pytest.raises(ValueError, match=missing):
        tls.server_credentials()

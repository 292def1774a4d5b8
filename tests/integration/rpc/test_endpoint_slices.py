"""Replicas found through EndpointSlices of an API server over HTTP, with the rights of the component's Role alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from charter.rpc.discovery import ReplicaAddress, replica_addresses

from tests.deploy.manifests import OVERLAYS, ROOT, containers, environment, of_kind, pod_specs, render_with
from tests.support.kubernetes_api import Cluster, Object, api_server

POLICY = "kubernetes:///policy.charter:50051"
CONTROL = "kubernetes:///policy.charter:50052"


def endpoint_slice(name: str, service: str, pods: dict[str, dict[str, bool]]) -> Object:
    """A slice as the controller writes it; each pod's address with its conditions."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv6" if any(":" in ip for ip in pods) else "IPv4",
        "endpoints": [{"addresses": [ip], "conditions": conditions} for ip, conditions in pods.items()],
        "ports": [{"name": "grpc", "port": 50051, "protocol": "TCP"}],
    }


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Reached as this machine's kubeconfig says."""
    objects = yaml.safe_load_all((ROOT / "deploy/endpoint-slices/role.yaml").read_text())
    (role,) = [one for one in objects if one["kind"] == "Role"]
    with api_server(role["rules"]) as (cluster, url):
        entry = {"name": "test"}
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [entry | {"cluster": {"server": url}}],
            "users": [entry | {"user": {}}],
            "contexts": [entry | {"context": {"cluster": "test", "user": "test"}}],
        }
        (tmp_path / "config").write_text(json.dumps(kubeconfig))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        yield cluster


def test_every_pod_that_stays_is_a_replica_ready_or_not(cluster: Cluster) -> None:
    cluster.create(
        "endpointslices",
        "charter",
        endpoint_slice(
            "policy-a",
            "policy",
            {
                "10.0.0.2": {"ready": True},
                "10.0.0.1": {"ready": False},
                "10.0.0.3": {"ready": False, "serving": True, "terminating": True},
            },
        ),
    )
    cluster.create("endpointslices", "charter", endpoint_slice("policy-b", "policy", {"fd00::1": {"ready": True}}))
    cluster.create("endpointslices", "charter", endpoint_slice("judge-a", "judge", {"10.0.0.9": {"ready": True}}))
    assert replica_addresses(POLICY, CONTROL) == [
        ReplicaAddress("10.0.0.1:50051", "10.0.0.1:50052"),
        ReplicaAddress("10.0.0.2:50051", "10.0.0.2:50052"),
        ReplicaAddress("[fd00::1]:50051", "[fd00::1]:50052"),
    ]
    assert replica_addresses("kubernetes:///judge.charter:50051") == [ReplicaAddress("10.0.0.9:50051")]
    assert cluster.used == {("discovery.k8s.io", "endpointslices", "list")}

    cluster.remove("endpointslices", "charter", "policy-a")
    assert [one.main for one in replica_addresses(POLICY)] == ["[fd00::1]:50051"]
    cluster.remove("endpointslices", "charter", "policy-b")
    with pytest.raises(OSError, match="the Service policy in namespace charter has no pods"):
        replica_addresses(POLICY)


def test_what_the_api_server_refuses_is_explained(cluster: Cluster) -> None:
    cluster.away = True
    with pytest.raises(OSError, match="the API server is away"):
        replica_addresses(POLICY)
    cluster.away = False
    cluster.rules.clear()
    with pytest.raises(OSError, match=r"endpointslices is forbidden.*deploy/endpoint-slices"):
        replica_addresses(POLICY)


def test_elsewhere_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(OSError, match="no kubeconfig and no ServiceAccount token"):
        replica_addresses(POLICY)


def test_the_component_gives_workers_the_right_and_runs_the_addresses() -> None:
    objects = render_with(OVERLAYS[0], (ROOT / "deploy/endpoint-slices",))
    (worker,) = [spec for name, spec in pod_specs(objects) if name == "worker"]
    assert worker["automountServiceAccountToken"] is True
    (binding,) = [one for one in of_kind(objects, "RoleBinding") if one["metadata"]["name"] == "worker"]
    (subject,) = binding["subjects"]
    assert subject["name"] == worker["serviceAccountName"]
    (trainer,) = [container for name, _, container in containers(objects) if name == "trainer"]
    values = environment(objects, trainer)
    assert (values["CHARTER_POLICY_ADDRESS"], values["CHARTER_POLICY_CONTROL_ADDRESS"]) == (POLICY, CONTROL)
    assert values["CHARTER_JUDGE_ADDRESS"] == "kubernetes:///judge.charter:50051"

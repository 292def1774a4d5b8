"""Replicas found through the EndpointSlices that the real controller writes, with the rights of the component alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from charter.rpc.discovery import ReplicaAddress, replica_addresses

from tests.cluster.access import NAMESPACE, apply, chosen, kubeconfig_of, kubectl, until
from tests.deploy.manifests import ROOT, pod_template

POLICY = f"kubernetes:///policy.{NAMESPACE}:50051"
CONTROL = f"kubernetes:///policy.{NAMESPACE}:50052"


def replica(name: str) -> dict[str, Any]:
    """A pod of the policy that no node takes."""
    (policy,) = chosen("StatefulSet/policy")
    template = pod_template(policy)
    spec = template["spec"]
    spec["nodeSelector"] = {"charter/test": "no-node"}
    spec["volumes"] = [one for one in spec["volumes"] if "persistentVolumeClaim" not in one]
    for container in spec["containers"]:
        container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] != "models"]
        container.pop("envFrom")
    # It stays on its way out until the test ends.
    metadata = {"name": name, "labels": template["metadata"]["labels"], "finalizers": ["charter/test"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def start(name: str, ip: str, ready: bool) -> None:
    """Write what a kubelet writes when a pod has its address."""
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition]}
    kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


def found() -> list[ReplicaAddress]:
    try:
        return replica_addresses(POLICY, CONTROL)
    except OSError as error:
        if "has no pods" not in str(error):
            raise
        return []


def test_every_pod_that_stays_is_a_replica(namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(chosen("ServiceAccount/worker", "ServiceAccount/policy", "Service/policy"))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig_of("worker", tmp_path)))
    with pytest.raises(OSError, match="endpoint-slices, whose Role allows it"):
        replica_addresses(POLICY, CONTROL)
    apply(yaml.safe_load_all((ROOT / "deploy/endpoint-slices/role.yaml").read_text()))
    addresses = [ReplicaAddress(f"203.0.113.{n}:50051", f"203.0.113.{n}:50052") for n in (1, 2)]
    try:
        apply([replica("policy-0"), replica("policy-1")])
        start("policy-0", "203.0.113.1", ready=True)
        # Without the newest weights it is not ready, and the worker must find it to send them.
        start("policy-1", "203.0.113.2", ready=False)
        until(lambda: found() == addresses)
        kubectl("delete", "pod", "policy-0", "--wait=false")
        until(lambda: found() == addresses[1:])
    finally:
        for name in ("policy-0", "policy-1"):
            kubectl("patch", "pod", name, "--type=merge", "-p", '{"metadata": {"finalizers": null}}', check=False)

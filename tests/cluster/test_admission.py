"""A real API server takes every object of every overlay, and admits every pod to a namespace that is `restricted`."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.access import apply, get
from tests.deploy.manifests import (
    CUSTOM,
    OVERLAYS,
    Manifest,
    combinations,
    loose_objects,
    of_kind,
    pod_template,
    render_with,
    workloads,
)

# What every pod must state to pass it. There is no CPU limit on purpose.
QUOTA = {"requests.cpu": "1000", "requests.memory": "10Ti", "limits.memory": "10Ti", "pods": "1000"}


def built_in(objects: tuple[Manifest, ...]) -> list[Manifest]:
    """Objects that every cluster knows. Custom resources need their operators."""
    return [one for one in objects if not one["apiVersion"].startswith(CUSTOM) and one["kind"] != "Namespace"]


def pods(objects: tuple[Manifest, ...]) -> list[Manifest]:
    """One pod of each workload, as its controller would make it."""
    found = []
    for one in workloads(objects):
        template = pod_template(one)
        name = one["metadata"]["name"]
        metadata: dict[str, Any] = {**template["metadata"], "name": f"test-{name}", "namespace": "charter"}
        claims = one["spec"].get("volumeClaimTemplates", ())
        volumes = [
            {"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
            for claim in claims
        ]
        spec = {**template["spec"], "volumes": [*template["spec"].get("volumes", ()), *volumes]}
        found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return found


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_the_api_server_takes_every_object_and_admits_every_pod(namespace: str, folder: Path) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "test"}, "spec": {"hard": QUOTA}}
    apply([quota])
    choices = combinations(folder)
    for components in [*(some for some in choices if len(some) <= 1), choices[-1]]:
        objects = render_with(folder, components)
        # A pod of an account that is not there would be refused for that alone.
        apply(of_kind(objects, "ServiceAccount"))
        objects_there = built_in(objects)
        taken = apply(objects_there, "--dry-run=server").splitlines()
        assert len(taken) == len(objects_there), taken
        assert all(line.endswith("serverside-applied (server dry run)") for line in taken), taken
        apply(pods(objects), "--dry-run=server")


def test_the_loader_of_models_is_admitted(namespace: str) -> None:
    apply(loose_objects(), "--dry-run=server")


def test_the_namespace_is_restricted(namespace: str) -> None:
    """Were it not, the tests above would prove little."""
    assert get("namespace", namespace)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    container = {"name": "root", "image": "x", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": {"containers": [container]}}
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        apply([pod], "--dry-run=server")

"""A real API server takes every object of every overlay, and admits every pod to a namespace that is `restricted`."""

import copy
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.access import LOCAL, apply, get, kubectl
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


def served_groups() -> set[str]:
    """API groups that the cluster serves; the one without a name is "v1"."""
    return {line.partition("/")[0] for line in kubectl("api-versions").split()}


def rounds(objects: Iterable[Manifest]) -> list[list[Manifest]]:
    """Each different object once, in lists in which no two have the same name."""
    variants: dict[tuple[str, str, str], dict[str, Manifest]] = {}
    for one in objects:
        key = (one["apiVersion"], one["kind"], one["metadata"]["name"])
        variants.setdefault(key, {})[json.dumps(one, sort_keys=True)] = one
    every = itertools.zip_longest(*(some.values() for some in variants.values()))
    return [[one for one in some if one] for some in every]


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
    """Of every combination of components. Custom resources are left out where the cluster has not their definitions."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "test"}, "spec": {"hard": QUOTA}}
    apply([quota])
    results = [render_with(folder, components) for components in combinations(folder)]
    groups = served_groups()
    objects = [one for result in results for one in result if one["apiVersion"].partition("/")[0] in groups]
    # A pod of an account that is not there would be refused for that alone.
    for some in rounds(of_kind(tuple(objects), "ServiceAccount")):
        apply(some)
    for some in rounds(one for one in objects if one["kind"] != "Namespace"):
        taken = apply(some, "--dry-run=server").splitlines()
        assert len(taken) == len(some), taken
        assert all(line.endswith("serverside-applied (server dry run)") for line in taken), taken
    for some in rounds(pod for result in results for pod in pods(result)):
        apply(some, "--dry-run=server")


@pytest.mark.parametrize("group", CUSTOM)
def test_a_custom_resource_with_a_wrong_field_is_refused(namespace: str, group: str) -> None:
    """Were the definitions without schemas, the test above would prove little."""
    if group not in served_groups():
        pytest.skip(f"the cluster has no definitions of {group}")
    every = (one for components in combinations(LOCAL) for one in render_with(LOCAL, components))
    wrong = copy.deepcopy(next(one for one in every if one["apiVersion"].startswith(group)))
    wrong["spec"]["nonsense"] = True
    with pytest.raises(AssertionError, match="nonsense"):
        apply([wrong], "--dry-run=server")


def test_the_loader_of_models_is_admitted(namespace: str) -> None:
    apply(loose_objects(), "--dry-run=server")


def test_the_namespace_is_restricted(namespace: str) -> None:
    """Were it not, the tests above would prove little."""
    assert get("namespace", namespace)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    container = {"name": "root", "image": "x", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": {"containers": [container]}}
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        apply([pod], "--dry-run=server")

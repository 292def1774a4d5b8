"""Every overlay and every combination of components renders to objects that two Kubernetes versions accept."""

import json
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest

from tests.deploy.manifests import (
    BASE,
    CUSTOM,
    OVERLAYS,
    Manifest,
    combinations,
    loose_objects,
    of_kind,
    render_with,
)

# The oldest version still supported upstream when this was written, and the newest that the validator knows.
KUBERNETES = ("1.35", "1.37")


@cache
def problem(text: str, version: str) -> str:
    """Why a Kubernetes version refuses an object (as JSON); empty when it takes it. Most are in many results."""
    one = json.loads(text)
    if one["apiVersion"].startswith(CUSTOM):
        return ""
    try:
        kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{one['kind']}/{one['metadata']['name']} on {version}: {error.message}"
    return ""


@pytest.mark.parametrize("folder", [BASE, *OVERLAYS], ids=lambda folder: folder.name)
def test_every_combination_is_valid(folder: Path) -> None:
    for components in combinations(folder):
        chosen = [component.name for component in components]
        # What monitoring adds does not depend on what an overlay adds: it is combined with the overlays.
        if folder == BASE and any(name.startswith("monitoring") for name in chosen):
            continue
        objects = render_with(folder, components)
        problems = {problem(json.dumps(one), version) for one in objects for version in KUBERNETES} - {""}
        assert not problems, (chosen, problems)
        keys = [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in objects]
        assert len(keys) == len(set(keys)), chosen
        assert not of_kind(objects, "Secret"), "secrets are made by hand or by cert-manager"
        assert {one["metadata"].get("namespace", "charter") for one in objects} == {"charter"}, chosen


def test_loose_objects_are_valid() -> None:
    assert {problem(json.dumps(one), version) for one in loose_objects() for version in KUBERNETES} == {""}


def test_the_validator_refuses_unknown_fields() -> None:
    """Were it not strict, the tests above would prove little."""
    service: Manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    assert problem(json.dumps(service), KUBERNETES[0])

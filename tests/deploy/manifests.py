"""Renders the kustomizations as `kubectl apply -k` would, and finds things in the result."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy" / "base"
OVERLAYS = sorted(path.parent for path in (ROOT / "deploy" / "overlays").glob("*/kustomization.yaml"))


@cache
def render(folder: Path) -> tuple[Manifest, ...]:
    """Objects of a kustomization, rendered by the kustomize inside kubectl."""
    kubectl = Path(sys.executable).parent / "kubectl"
    result = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert result.returncode == 0, f"kubectl kustomize {folder.relative_to(ROOT)}:\n{result.stderr}"
    return tuple(yaml.safe_load_all(result.stdout))


def loose_objects() -> list[Manifest]:
    """Objects in deploy/overlays that no kustomization lists, for applying by hand."""
    return list(yaml.safe_load_all((ROOT / "deploy/overlays/local/model-loader.yaml").read_text()))


def of_kind(objects: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    """Objects of the given kinds."""
    return [one for one in objects if one["kind"] in kinds]


def workloads(objects: tuple[Manifest, ...]) -> list[Manifest]:
    """Everything that makes pods from a template."""
    return of_kind(objects, "Deployment", "StatefulSet")


def pod_specs(objects: tuple[Manifest, ...]) -> list[tuple[str, Manifest]]:
    """Name and pod spec of each workload and bare pod."""
    templates = [(one["metadata"]["name"], one["spec"]["template"]["spec"]) for one in workloads(objects)]
    return templates + [(one["metadata"]["name"], one["spec"]) for one in of_kind(objects, "Pod")]


def containers(objects: tuple[Manifest, ...]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Workload name, pod spec and container, init containers included."""
    for name, spec in pod_specs(objects):
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            yield name, spec, container


def image_environment() -> dict[str, str]:
    """The ENV of the Dockerfile's last stage."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    stage = text.rpartition("\nFROM ")[2]
    (line,) = [line for line in stage.splitlines() if line.startswith("ENV ")]
    return dict(pair.split("=", maxsplit=1) for pair in line.split()[1:])


def config_map(objects: tuple[Manifest, ...], name: str) -> dict[str, str]:
    """Data of a ConfigMap by its rendered name."""
    (found,) = [one for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == name]
    data: dict[str, str] = found["data"]
    return data


def environment(objects: tuple[Manifest, ...], container: Manifest) -> dict[str, str]:
    """Environment of a container from its ConfigMaps and plain values."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        values |= config_map(objects, source["configMapRef"]["name"])
    for entry in container.get("env", ()):
        values[entry["name"]] = entry["value"]
    return values


def arguments(objects: tuple[Manifest, ...], container: Manifest) -> list[str]:
    """Arguments of a container with its $(NAME) references filled in, as the kubelet does."""
    values = environment(objects, container)
    filled = []
    for argument in container.get("args", ()):
        for name, value in values.items():
            argument = argument.replace(f"$({name})", value)
        assert "$(" not in argument, f"{argument}: not in the environment of {container['name']}"
        filled.append(argument)
    return filled

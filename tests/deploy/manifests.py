"""Renders the kustomizations as `kubectl apply -k` would, and finds things in the result."""

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy" / "base"
OVERLAYS = sorted(path.parent for path in (ROOT / "deploy" / "overlays").glob("*/kustomization.yaml"))
COMPONENTS = sorted(path.parent for path in (ROOT / "deploy" / "components").glob("*/kustomization.yaml"))
NCCL = ROOT / "deploy" / "components" / "weights-nccl"
SERVICES = ("policy", "judge", "preference", "trainer")
# Custom resources have no schema in the validator; tests/deploy/test_components.py checks them.
CUSTOM = ("cert-manager.io", "keda.sh", "monitoring.coreos.com")


@cache
def render(folder: Path) -> tuple[Manifest, ...]:
    """Objects of a kustomization, rendered by the kustomize inside kubectl."""
    kubectl = Path(sys.executable).parent / "kubectl"
    result = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert result.returncode == 0, f"kubectl kustomize {folder}:\n{result.stderr}"
    return tuple(yaml.load_all(result.stdout, Loader=yaml.CSafeLoader))


@cache
def render_with(folder: Path, components: tuple[Path, ...]) -> tuple[Manifest, ...]:
    """Objects of a kustomization with components on top, as docs/kubernetes.md says how to add them."""
    with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
        here = Path(temporary)
        document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "charter",
            "resources": [os.path.relpath(folder, here)],
            "components": [os.path.relpath(component, here) for component in components],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(document))
        return render(here)


def components_of(folder: Path) -> list[Path]:
    """Components that a kustomization has itself."""
    document = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return [(folder / path).resolve() for path in document.get("components", ())]


def combinations(folder: Path) -> list[tuple[Path, ...]]:
    """Every choice of components that can be put on top of a kustomization, all of them last.

    Of the two for monitoring a cluster has one; both bring the same dashboards. artifacts-s3 changes artifacts-pvc.
    Without GPUs there is no NCCL.
    """
    free = [component for component in COMPONENTS if component not in components_of(folder)]
    if folder.name == "local":
        free.remove(NCCL)
    chosen = [some for size in range(len(free) + 1) for some in itertools.combinations(free, size)]
    alternatives = {component for component in COMPONENTS if component.name.startswith("monitoring")}
    own = {component.name for component in components_of(folder)}

    def fits(some: tuple[Path, ...]) -> bool:
        names = own | {component.name for component in some}
        return len(alternatives.intersection(some)) <= 1 and not (
            "artifacts-s3" in names and "artifacts-pvc" not in names
        )

    return [some for some in chosen if fits(some)]


def everything(folder: Path) -> tuple[Manifest, ...]:
    """Objects of a kustomization with every component, and the Prometheus and Grafana of our own."""
    return render_with(folder, combinations(folder)[-1])


def loose_objects() -> list[Manifest]:
    """Objects in deploy/overlays that no kustomization lists, for applying by hand."""
    return list(yaml.safe_load_all((ROOT / "deploy/overlays/local/model-loader.yaml").read_text()))


def of_kind(objects: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    """Objects of the given kinds."""
    return [one for one in objects if one["kind"] in kinds]


def workloads(objects: tuple[Manifest, ...]) -> list[Manifest]:
    """Everything that makes pods from a template."""
    return of_kind(objects, "Deployment", "StatefulSet", "CronJob", "Job", "DaemonSet")


def pod_template(workload: Manifest) -> Manifest:
    """Template of a workload's pods."""
    spec = workload["spec"]["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else workload["spec"]
    template: Manifest = spec["template"]
    return template


def pod_specs(objects: tuple[Manifest, ...]) -> list[tuple[str, Manifest]]:
    """Name and pod spec of each workload and bare pod."""
    templates = [(one["metadata"]["name"], pod_template(one)["spec"]) for one in workloads(objects)]
    return templates + [(one["metadata"]["name"], one["spec"]) for one in of_kind(objects, "Pod")]


def containers(objects: tuple[Manifest, ...]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Workload name, pod spec and container, init containers included."""
    for name, spec in pod_specs(objects):
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            yield name, spec, container


def image_environment() -> dict[str, str]:
    """The last ENV of the Dockerfile, which is that of its images."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    line = [line for line in text.splitlines() if line.startswith("ENV ")][-1]
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
        values[entry["name"]] = entry.get("value", "")
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

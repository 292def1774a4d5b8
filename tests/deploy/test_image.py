"""The Dockerfile, skaffold.yaml and the manifests speak of the same image and the same files."""

import re
import tomllib
from typing import Any

import yaml

from tests.deploy.manifests import BASE, OVERLAYS, ROOT, containers, image_environment, loose_objects, render

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def skaffold() -> dict[str, Any]:
    """The only document of skaffold.yaml."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
    return document


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def test_skaffold_paths_exist() -> None:
    document = skaffold()
    assert document["apiVersion"] == "skaffold/v4beta14"
    for artifact in document["build"]["artifacts"]:
        assert (ROOT / artifact["context"] / artifact["docker"]["dockerfile"]).is_file()
    for path in document["manifests"]["kustomize"]["paths"]:
        assert (ROOT / path / "kustomization.yaml").is_file()


def test_skaffold_forwards_to_ports_that_exist() -> None:
    document = skaffold()
    (path,) = document["manifests"]["kustomize"]["paths"]
    services = {one["metadata"]["name"]: one for one in render(ROOT / path) if one["kind"] == "Service"}
    for forward in document["portForward"]:
        service = services[forward["resourceName"]]
        assert forward["namespace"] == service["metadata"]["namespace"]
        assert forward["port"] in {port["port"] for port in service["spec"]["ports"]}


def test_images_in_manifests_are_built_by_skaffold_and_the_reverse() -> None:
    built = {artifact["image"] for artifact in skaffold()["build"]["artifacts"]}
    used = {
        container["image"]
        for folder in (BASE, *OVERLAYS)
        for _, _, container in containers((*render(folder), *loose_objects()))
    }
    assert {image.partition(":")[0] for image in used} == built
    assert used == {f"charter:{VERSION}"}, "manifests name the version of pyproject.toml, never `latest`"


def test_version_of_the_image_is_that_of_the_project() -> None:
    assert ("ARG", f"VERSION={VERSION}") in instructions()


def test_base_image_is_an_argument_in_both_stages() -> None:
    assert [argument.split()[0] for name, argument in instructions() if name == "FROM"] == ["${BASE_IMAGE}"] * 2
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


def test_locks_that_the_image_can_be_built_from_exist_and_are_pinned() -> None:
    for lock in ("cpu", "cuda"):
        lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
        loose = [line for line in lines if line and not line.startswith(("#", " ", "-")) and "==" not in line]
        assert not loose, f"{lock}.lock: not pinned: {loose}"


def test_written_folders_of_the_image_are_volumes() -> None:
    (volumes,) = [yaml.safe_load(argument) for name, argument in instructions() if name == "VOLUME"]
    values = image_environment()
    for variable in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "CHARTER_HOME"):
        assert any(f"{values[variable]}/".startswith(f"{volume}/") for volume in volumes), variable

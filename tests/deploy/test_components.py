"""Components: certificates carry the names that are called, scalers ask for metrics that exist, secrets are shared."""

import re
import tomllib
from pathlib import Path

import pytest
import typer
from charter.cli.cluster.components import OPERATORS, SECRETS
from charter.cli.local.doctor import COMPONENTS as DOCTOR
from charter.cli.main import app
from charter.rpc import tls
from charter.rpc.discovery import DNS

from tests.deploy.manifests import (
    COMPONENTS,
    CUSTOM,
    NCCL,
    OVERLAYS,
    ROOT,
    SERVICES,
    Manifest,
    arguments,
    combinations,
    containers,
    environment,
    everything,
    of_kind,
    render,
    render_with,
    workloads,
)

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

overlays = pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)


def custom(objects: tuple[Manifest, ...], kind: str, group: str) -> list[Manifest]:
    """Custom resources of a kind, whose API group must be right."""
    found = of_kind(objects, kind)
    assert {one["apiVersion"].partition("/")[0] for one in found} <= {group}
    return found


def called_names(objects: tuple[Manifest, ...]) -> set[str]:
    """Host names that the manifests tell anybody to call."""
    names = set()
    for name, _, container in containers(objects):
        values = environment(objects, container)
        addresses = [value for key, value in values.items() if key.endswith("_ADDRESS")]
        if name in SERVICES:
            addresses += [a.partition("=")[2] for a in arguments(objects, container) if a.startswith("--control-a")]
        names |= {part.rpartition(":")[0] for address in addresses for part in address.split(",")}
    return names


@overlays
def test_certificates_carry_every_name_that_is_called(folder: Path) -> None:
    objects = everything(folder)
    certificates = custom(objects, "Certificate", "cert-manager.io")
    covered = {name for one in certificates for name in one["spec"].get("dnsNames", ())}
    assert called_names(objects) == {"policy-0.policy", "judge", "preference", "trainer"}
    assert called_names(objects) <= covered
    issuers = {one["metadata"]["name"]: one for one in custom(objects, "Issuer", "cert-manager.io")}
    for one in certificates:
        spec = one["spec"]
        assert spec["issuerRef"]["name"] in issuers
        if not spec.get("isCA"):
            assert int(spec["renewBefore"].rstrip("h")) < int(spec["duration"].rstrip("h"))
            assert issuers[spec["issuerRef"]["name"]]["spec"] == {"ca": {"secretName": "charter-ca"}}


@overlays
def test_without_certificates_every_replica_is_found(folder: Path) -> None:
    names = {name.removeprefix(DNS) for name in called_names(render(folder)) if name.startswith(DNS)}
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(render(folder), "Service")}
    assert names == {"policy", "judge"}
    assert all(services[name]["clusterIP"] == "None" for name in names), "only then DNS has each pod's address"
    assert services["policy"]["publishNotReadyAddresses"] is True


@overlays
def test_every_charter_pod_has_its_own_certificate(folder: Path) -> None:
    objects = everything(folder)
    issued = {
        one["spec"]["secretName"]: set(one["spec"]["usages"])
        for one in of_kind(objects, "Certificate")
        if not one["spec"].get("isCA")
    }
    for name, spec, container in containers(objects):
        if name not in (*SERVICES, "worker"):
            continue
        mounted = environment(objects, container)[tls.VARIABLE]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == mounted]
        (volume,) = [volume for volume in spec["volumes"] if volume["name"] == mount["name"]]
        assert volume["secret"]["secretName"] == f"{name}-tls"
        assert mount["readOnly"] is True
        expected = {"client auth"} | ({"server auth"} if name != "worker" else set())
        assert issued[f"{name}-tls"] == expected


@overlays
def test_scalers_name_workloads_that_leave_replicas_to_them(folder: Path) -> None:
    objects = everything(folder)
    found = {(one["kind"], one["metadata"]["name"]): one for one in workloads(objects)}
    scalers = custom(objects, "ScaledObject", "keda.sh")
    assert {one["metadata"]["name"] for one in scalers} == {"judge", "policy"}
    for one in scalers:
        target = one["spec"]["scaleTargetRef"]
        assert "replicas" not in found[target["kind"], target["name"]]["spec"]
        assert one["spec"]["minReplicaCount"] >= 1
    others = [one for key, one in found.items() if key[1] not in ("judge", "policy") and key[0] != "CronJob"]
    assert all(one["spec"].get("replicas", 1) == 1 for one in others)


def test_scalers_ask_for_metrics_that_the_services_export() -> None:
    source = "".join((ROOT / "services/charter" / room / "metrics.py").read_text() for room in ("rpc", "policy"))
    for one in of_kind(everything(OVERLAYS[0]), "ScaledObject"):
        for trigger in one["spec"]["triggers"]:
            names = re.findall(r"\w+(?=\{)", trigger["metadata"]["query"])
            assert names
            assert all(f'"{name}"' in source for name in names), f"nothing exports one of {names}"


@overlays
def test_postgres_and_its_clients_share_one_secret(folder: Path) -> None:
    objects = everything(folder)
    secrets = {}
    for name, _, container in containers(objects):
        for entry in container.get("env", ()):
            if "valueFrom" in entry:
                secrets[name, entry["name"]] = entry["valueFrom"]["secretKeyRef"]
    expected = {"name": "postgres", "key": "password"}
    ((job, migrating),) = [(name, one) for name, _, one in containers(objects) if one["name"] == "migrate"]
    keys = {("postgres", "POSTGRES_PASSWORD")} | {(name, "PGPASSWORD") for name in ("trainer", "preference", job)}
    assert {key: secrets[key] for key in keys} == dict.fromkeys(keys, expected)
    for name, _, container in containers(objects):
        if name in ("trainer", "preference", job):
            url = environment(objects, container)["CHARTER_DATABASE"]
            assert url == "postgresql://charter@postgres:5432/charter"
        if name in ("trainer", "preference"):
            assert environment(objects, container)["CHARTER_MIGRATE"] == "false", "the Job alone migrates"
    # A Job's template cannot be changed: each version needs one of its own name.
    assert job == f"migrate-{VERSION.replace('.', '-')}"
    assert migrating["args"] == ["database", "migrate"]
    assert typer.main.get_command(app).commands["database"].commands["migrate"]  # type: ignore[attr-defined]


@overlays
def test_charters_own_images_are_of_one_build(folder: Path) -> None:
    """A component's image must follow the tag of the overlay that it is put on: `gpu` has another."""
    images: dict[str, set[str]] = {}
    for name, _, container in containers(everything(folder)):
        image, _, tag = container["image"].rpartition(":")
        if image.startswith("charter-"):
            images.setdefault(tag, set()).add(name)
    assert len(images) == 1, images


def test_with_nccl_the_worker_has_the_image_with_vllm() -> None:
    (gpu,) = [folder for folder in OVERLAYS if folder.name == "gpu"]

    def images(components: tuple[Path, ...]) -> dict[str, str]:
        return {name: container["image"] for name, _, container in containers(render_with(gpu, components))}

    assert images(())["worker"].startswith("charter-worker:")
    chosen = images((NCCL,))
    assert chosen["worker"] == chosen["policy"] == images(())["policy"]
    assert chosen["trainer"] == images(())["trainer"]


def test_the_doctor_looks_for_the_custom_resources_that_components_are_made_of() -> None:
    def kinds(objects: tuple[Manifest, ...]) -> set[tuple[str, str]]:
        return {(one["apiVersion"], one["kind"]) for one in objects if one["apiVersion"].startswith(CUSTOM)}

    assert not kinds(render(OVERLAYS[0])), "an overlay works as it stands"
    alone = [chosen[0] for chosen in combinations(OVERLAYS[0]) if len(chosen) == 1]
    used = {one.name: kinds(render_with(OVERLAYS[0], (one,))) for one in alone}
    used = {name: found for name, found in used.items() if found}
    looked_for = {name: {(one.api, kind) for kind in one.kinds} for name, one in OPERATORS.items()}
    assert used == looked_for
    names = {component.name for component in COMPONENTS}
    assert set(DOCTOR) <= names
    assert set(DOCTOR) == OPERATORS.keys() | SECRETS.keys()


@overlays
def test_artifacts_in_a_bucket_are_a_volume_that_every_node_may_write(folder: Path) -> None:
    objects = render_with(folder, (ROOT / "deploy/components/artifacts-s3",))
    (kind,) = of_kind(objects, "StorageClass")
    (claim,) = [one for one in of_kind(objects, "PersistentVolumeClaim") if one["metadata"]["name"] == "artifacts"]
    assert claim["spec"]["storageClassName"] == kind["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert kind["reclaimPolicy"] == "Retain", "deleting the deployment must not delete runs"
    names = {key.rpartition("-")[2]: value for key, value in kind["parameters"].items()}
    assert names == {"name": "artifacts-s3", "namespace": claim["metadata"]["namespace"]}


def test_patches_name_fields_and_never_places_in_lists() -> None:
    for path in (ROOT / "deploy").rglob("*.yaml"):
        assert not re.search(r"path: \S*/\d+(/|$)", path.read_text(), re.MULTILINE), path

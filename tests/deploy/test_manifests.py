"""Every object is what two Kubernetes versions accept, and the rules between fields and objects hold."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
from charter.rpc import lifecycle

from tests.deploy.manifests import (
    BASE,
    OVERLAYS,
    ROOT,
    Manifest,
    config_map,
    containers,
    loose_objects,
    of_kind,
    pod_specs,
    render,
    workloads,
)

# The oldest version still supported upstream when this was written, and the newest that the validator knows.
KUBERNETES = ("1.35", "1.37")
FOLDERS = [BASE, *OVERLAYS]
SERVICES = {"policy", "judge", "preference", "trainer"}

folders = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
overlays = pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)


def amount(quantity: str) -> float:
    """A Kubernetes quantity as a number: bytes or cores."""
    match = re.fullmatch(r"([0-9.]+)(m|[KMGT]i?|)", str(quantity))
    assert match, f"{quantity} is no quantity"
    powers = {"": 1.0, "m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    powers |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", start=1)}
    return float(match[1]) * powers[match[2]]


@pytest.mark.parametrize("version", KUBERNETES)
@folders
def test_objects_are_valid(folder: Path, version: str) -> None:
    for one in (*render(folder), *loose_objects()):
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{one['kind']}/{one['metadata']['name']} on {version}: {error.message}")


def test_the_validator_refuses_unknown_fields() -> None:
    """Were it not strict, the test above would prove little."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, KUBERNETES[0], strict=True)


@folders
def test_each_service_is_there_once(folder: Path) -> None:
    objects = render(folder)
    assert {one["metadata"]["name"] for one in workloads(objects)} == SERVICES
    assert {one["metadata"]["name"] for one in of_kind(objects, "Service")} == SERVICES


@folders
def test_names_are_unique(folder: Path) -> None:
    keys = [(one["kind"], one["metadata"]["name"]) for one in render(folder)]
    assert len(keys) == len(set(keys))


@folders
def test_selectors_match_their_pods_and_no_others(folder: Path) -> None:
    objects = render(folder)
    labels = {one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"] for one in workloads(objects)}

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, have in labels.items() if selector.items() <= have.items()}

    for one in workloads(objects):
        assert selected(one["spec"]["selector"]["matchLabels"]) == {one["metadata"]["name"]}
    for one in of_kind(objects, "Service"):
        assert selected(one["spec"]["selector"]) == {one["metadata"]["name"]}
    for one in of_kind(objects, "PodDisruptionBudget"):
        assert selected(one["spec"]["selector"]["matchLabels"]) == {one["metadata"]["name"]}


@folders
def test_services_are_headless_and_their_ports_exist(folder: Path) -> None:
    objects = render(folder)
    specs = dict(pod_specs(objects))
    expected = {"grpc": 50051, "control": 50052, "metrics": 9090, "worker-metrics": 9095}
    for service in of_kind(objects, "Service"):
        assert service["spec"]["clusterIP"] == "None", "a ClusterIP balances connections, gRPC needs calls balanced"
        name = service["metadata"]["name"]
        named = {port["name"]: port["containerPort"] for one in specs[name]["containers"] for port in one["ports"]}
        assert named.items() <= expected.items()
        for port in service["spec"]["ports"]:
            assert port["name"] == port["targetPort"]
            assert named[port["targetPort"]] == port["port"], f"{name}: {port['name']}"
        # Prometheus scrapes the pods themselves: the worker's page, there only during a run, needs no Service.
        assert {port["name"] for port in service["spec"]["ports"]} == set(named) - {"worker-metrics"}


@folders
def test_stateful_sets_name_their_service(folder: Path) -> None:
    objects = render(folder)
    services = {one["metadata"]["name"] for one in of_kind(objects, "Service")}
    assert {one["spec"]["serviceName"] for one in of_kind(objects, "StatefulSet")} <= services


@folders
def test_shutdown_is_shorter_than_the_grace(folder: Path) -> None:
    # Time for the engine and the process to end after the last call.
    margin = 10
    for name, spec in pod_specs(render(folder)):
        needed = lifecycle.ENDPOINT_SECONDS + lifecycle.DRAIN_SECONDS + margin
        assert spec["terminationGracePeriodSeconds"] >= needed, f"{name} would be killed while it drains"


@folders
def test_containers_have_resources(folder: Path) -> None:
    for name, _, container in containers((*render(folder), *loose_objects())):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= requests.keys(), name
        assert "memory" in limits, name
        for resource, limit in limits.items():
            assert amount(limit) >= amount(requests[resource]), f"{name}: {resource} limit is below its request"


@folders
def test_pods_run_without_rights(folder: Path) -> None:
    objects = (*render(folder), *loose_objects())
    for name, spec in pod_specs(objects):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] >= 1000, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(key), f"{name}: {key}"
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume], name
    for name, _, container in containers(objects):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert "privileged" not in security, name


@folders
def test_service_accounts_exist_and_carry_no_token(folder: Path) -> None:
    objects = render(folder)
    accounts = {one["metadata"]["name"]: one for one in of_kind(objects, "ServiceAccount")}
    assert {spec["serviceAccountName"] for _, spec in pod_specs(objects)} == set(accounts)
    assert all(one["automountServiceAccountToken"] is False for one in accounts.values())


@folders
def test_mounts_name_volumes_and_every_written_folder_is_mounted(folder: Path) -> None:
    objects = render(folder)
    claimed = {
        one["metadata"]["name"]: [claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", ())]
        for one in workloads(objects)
    }
    for name, spec, container in containers(objects):
        volumes = {volume["name"] for volume in spec["volumes"]} | set(claimed[name])
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == volumes, f"{name}: volumes and mounts differ"
        # The folders that the Dockerfile points caches, models and temporary files at.
        assert {"/cache", "/tmp", "/models"} <= mounts.keys(), name


@folders
def test_no_secret_is_inline(folder: Path) -> None:
    objects = render(folder)
    assert not of_kind(objects, "Secret")
    for name, _, container in containers(objects):
        secret = [
            entry["name"]
            for entry in container.get("env", ())
            if "value" in entry and re.search(r"KEY|TOKEN|PASSWORD|SECRET", entry["name"])
        ]
        assert not secret, f"{name}: {secret}"


@overlays
def test_everything_that_an_overlay_names_is_in_it(folder: Path) -> None:
    objects = render(folder)
    claims = {one["metadata"]["name"] for one in of_kind(objects, "PersistentVolumeClaim")}
    for _, spec in pod_specs(objects):
        for volume in spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "configMap" in volume:
                assert config_map(objects, volume["configMap"]["name"])


@overlays
def test_constitution_is_one_of_the_examples(folder: Path) -> None:
    objects = render(folder)
    ((_, judge),) = [(name, spec) for name, spec in pod_specs(objects) if name == "judge"]
    (volume,) = [volume for volume in judge["volumes"] if volume["name"] == "constitution"]
    text = config_map(objects, volume["configMap"]["name"])["constitution.yaml"]
    assert text in [path.read_text() for path in (ROOT / "examples" / "constitutions").glob("*.yaml")]


@overlays
def test_objects_share_one_namespace_that_exists(folder: Path) -> None:
    objects = (*render(folder), *loose_objects())
    (namespace,) = of_kind(objects, "Namespace")
    name = namespace["metadata"]["name"]
    assert {one["metadata"].get("namespace", name) for one in objects} == {name}
    assert all("namespace" in one["metadata"] for one in objects if one["kind"] != "Namespace")


def probes(container: Manifest) -> dict[str, Manifest]:
    """The three probes of a container by their field."""
    return {kind: container[kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}


@folders
def test_probes_are_native_and_ask_the_right_name(folder: Path) -> None:
    for name, _, container in containers(render(folder)):
        service = f"charter.v1.{name.capitalize()}Service"
        grpc_port = {port["name"]: port["containerPort"] for port in container["ports"]}["grpc"]
        for kind, probe in probes(container).items():
            assert probe["grpc"]["port"] == grpc_port, f"{name}: {kind} asks a port that is not the gRPC port"
            # Liveness must not fail while the model loads or drains: it asks for the process ("").
            expected = "" if kind == "livenessProbe" else service
            assert probe["grpc"].get("service", "") == expected, f"{name}: {kind}"
            assert probe.get("successThreshold", 1) == 1
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 300, f"{name}: too short for a model to load"

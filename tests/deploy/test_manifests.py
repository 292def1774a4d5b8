"""The rules between fields and objects hold, in the base, in each overlay, and with every component."""

import re
from pathlib import Path

import pytest
from charter.rpc import lifecycle

from tests.deploy.manifests import (
    BASE,
    OVERLAYS,
    ROOT,
    SERVICES,
    Manifest,
    config_map,
    containers,
    everything,
    loose_objects,
    of_kind,
    pod_specs,
    pod_template,
    render,
    workloads,
)

# As it stands, and with every component.
LAYERS = [(folder, layer) for folder in (BASE, *OVERLAYS) for layer in (render, everything)]

layers = pytest.mark.parametrize(
    "objects",
    [pytest.param((folder, layer), id=f"{folder.name}-{layer.__name__}") for folder, layer in LAYERS],
    indirect=True,
)
overlays = pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)


@pytest.fixture
def objects(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    """Objects of a kustomization."""
    folder, layer = request.param
    found: tuple[Manifest, ...] = layer(folder)
    return found


def amount(quantity: str) -> float:
    """A Kubernetes quantity as a number: bytes or cores."""
    match = re.fullmatch(r"([0-9.]+)(m|[KMGT]i?|)", str(quantity))
    assert match, f"{quantity} is no quantity"
    powers = {"": 1.0, "m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    powers |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", start=1)}
    return float(match[1]) * powers[match[2]]


@layers
def test_each_service_is_there_once(objects: tuple[Manifest, ...]) -> None:
    names = {one["metadata"]["name"] for one in workloads(objects)}
    assert {*SERVICES, "worker"} <= names
    # A Job of the deployment's own (migrations) is called by nobody.
    served = names - {one["metadata"]["name"] for one in of_kind(objects, "Job")}
    assert served <= {one["metadata"]["name"] for one in of_kind(objects, "Service")}


@layers
def test_selectors_match_their_pods_and_no_others(objects: tuple[Manifest, ...]) -> None:
    labels = {one["metadata"]["name"]: pod_template(one)["metadata"]["labels"] for one in workloads(objects)}

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, have in labels.items() if selector.items() <= have.items()}

    for one in of_kind(objects, "Deployment", "StatefulSet"):
        assert selected(one["spec"]["selector"]["matchLabels"]) == {one["metadata"]["name"]}
    for one in of_kind(objects, "Service"):
        assert selected(one["spec"]["selector"]) == {one["metadata"]["name"]}
    for one in of_kind(objects, "PodDisruptionBudget"):
        assert selected(one["spec"]["selector"]["matchLabels"]) == {one["metadata"]["name"]}


@layers
def test_services_are_headless_and_their_ports_exist(objects: tuple[Manifest, ...]) -> None:
    specs = dict(pod_specs(objects))
    expected = {"grpc": 50051, "control": 50052, "metrics": 9090, "health": 50053}
    for service in of_kind(objects, "Service"):
        name = service["metadata"]["name"]
        named = {port["name"]: port["containerPort"] for one in specs[name]["containers"] for port in one["ports"]}
        for port in service["spec"]["ports"]:
            assert port["name"] == port["targetPort"]
            assert named[port["targetPort"]] == port["port"], f"{name}: {port['name']}"
        if name not in (*SERVICES, "worker", "postgres"):
            continue
        assert service["spec"]["clusterIP"] == "None", "a ClusterIP balances connections, gRPC needs calls balanced"
        # Probes come from the node, to the pod itself.
        assert {port["name"] for port in service["spec"]["ports"]} == set(named) - {"health"}
        if name in SERVICES:
            assert named.items() <= expected.items()


@layers
def test_stateful_sets_name_their_service(objects: tuple[Manifest, ...]) -> None:
    services = {one["metadata"]["name"] for one in of_kind(objects, "Service")}
    assert {one["spec"]["serviceName"] for one in of_kind(objects, "StatefulSet")} <= services


@layers
def test_shutdown_is_shorter_than_the_grace(objects: tuple[Manifest, ...]) -> None:
    # Time for the engine and the process to end after the last call.
    margin = 10
    needed = lifecycle.ENDPOINT_SECONDS + lifecycle.DRAIN_SECONDS + margin
    for name, spec in pod_specs(objects):
        if name in (*SERVICES, "worker"):
            assert spec["terminationGracePeriodSeconds"] >= needed, f"{name} would be killed while it drains"


@layers
def test_containers_have_resources(objects: tuple[Manifest, ...]) -> None:
    for name, _, container in containers((*objects, *loose_objects())):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= requests.keys(), name
        assert "memory" in limits, name
        for resource, limit in limits.items():
            assert amount(limit) >= amount(requests[resource]), f"{name}: {resource} limit is below its request"


@layers
def test_pods_run_without_rights(objects: tuple[Manifest, ...]) -> None:
    every = (*objects, *loose_objects())
    for name, spec in pod_specs(every):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(key), f"{name}: {key}"
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume], name
    for name, _, container in containers(every):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert "privileged" not in security, name


@layers
def test_only_who_has_a_role_carries_a_token(objects: tuple[Manifest, ...]) -> None:
    accounts = {one["metadata"]["name"]: one for one in of_kind(objects, "ServiceAccount")}
    assert {spec["serviceAccountName"] for _, spec in pod_specs(objects)} == set(accounts)
    assert all(one["automountServiceAccountToken"] is False for one in accounts.values())
    bound = {
        subject["name"]
        for one in of_kind(objects, "RoleBinding", "ClusterRoleBinding")
        for subject in one["subjects"]
        if subject["kind"] == "ServiceAccount"
    }
    carrying = {spec["serviceAccountName"] for _, spec in pod_specs(objects) if spec["automountServiceAccountToken"]}
    assert carrying == bound
    # A Role, whose rights end at the namespace; no wildcard in any.
    for one in of_kind(objects, "Role"):
        for rule in one["rules"]:
            assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]), one["metadata"]["name"]
    assert "trainer" in bound


@layers
def test_mounts_name_volumes_and_every_written_folder_is_mounted(objects: tuple[Manifest, ...]) -> None:
    claimed = {
        one["metadata"]["name"]: [claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", ())]
        for one in workloads(objects)
    }
    # The folders that the Dockerfile points caches, temporary files and models at.
    written = {name: {"/cache", "/tmp", "/models"} for name in SERVICES} | {
        "trainer": {"/cache", "/tmp", "/var/lib/charter", "/var/lib/charter/runs"},
        "worker": {"/cache", "/tmp", "/models", "/var/lib/charter/runs"},
    }
    for name, spec, container in containers(objects):
        volumes = {volume["name"] for volume in spec["volumes"]} | set(claimed[name])
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == volumes, f"{name}: volumes and mounts differ"
        assert written.get(name, set()) <= mounts.keys(), name


@layers
def test_the_trainer_and_its_workers_share_the_artifacts(objects: tuple[Manifest, ...]) -> None:
    shared = {}
    for name, spec, container in containers(objects):
        for mount in container["volumeMounts"]:
            if mount["name"] == "artifacts":
                (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "artifacts"]
                shared[name] = (mount["mountPath"], volume["persistentVolumeClaim"]["claimName"])
    assert shared == dict.fromkeys(("trainer", "worker"), ("/var/lib/charter/runs", "artifacts"))


@layers
def test_images_are_pinned(objects: tuple[Manifest, ...]) -> None:
    for name, _, container in containers(objects):
        tag = container["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), f"{name}: {container['image']}"


@layers
def test_replicas_spread_over_nodes(objects: tuple[Manifest, ...]) -> None:
    for name, spec in pod_specs(objects):
        if name in ("policy", "judge"):
            (constraint,) = spec["topologySpreadConstraints"]
            assert constraint["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": name}
    guarded = {one["metadata"]["name"] for one in of_kind(objects, "PodDisruptionBudget")}
    assert set(SERVICES) <= guarded


@layers
def test_the_worker_is_a_job_that_outlives_its_node(objects: tuple[Manifest, ...]) -> None:
    from charter.worker.__main__ import FAILED, FINISHED, REFUSED, STOPPED, TERMINATED

    (template,) = of_kind(objects, "CronJob")
    assert template["spec"]["suspend"] is True, "it is a template and never runs by itself"
    job = template["spec"]["jobTemplate"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    assert job["ttlSecondsAfterFinished"] > 0
    evicted, final = job["podFailurePolicy"]["rules"]
    assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (final["action"], final["onExitCodes"]["values"]) == ("FailJob", [REFUSED, STOPPED])
    assert not {REFUSED, STOPPED} & {FINISHED, FAILED, TERMINATED}
    spec = job["template"]["spec"]
    # The API server takes a podFailurePolicy only with this.
    assert spec["restartPolicy"] == "Never"
    assert final["onExitCodes"]["containerName"] in {one["name"] for one in spec["containers"]}
    (service,) = [one for one in of_kind(objects, "Service") if one["metadata"]["name"] == spec["subdomain"]]
    assert service["spec"]["publishNotReadyAddresses"] is True


@layers
def test_no_secret_is_inline(objects: tuple[Manifest, ...]) -> None:
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


@layers
def test_probes_are_native_and_ask_the_right_name(objects: tuple[Manifest, ...]) -> None:
    for name, _, container in containers(objects):
        if name not in SERVICES:
            continue
        service = f"charter.v1.{name.capitalize()}Service"
        health_port = {port["name"]: port["containerPort"] for port in container["ports"]}["health"]
        for kind, probe in probes(container).items():
            assert probe["grpc"]["port"] == health_port, f"{name}: {kind} asks a port that may have TLS"
            # Liveness must not fail while the model loads or drains: it asks for the process ("").
            expected = "" if kind == "livenessProbe" else service
            assert probe["grpc"].get("service", "") == expected, f"{name}: {kind}"
            assert probe.get("successThreshold", 1) == 1
            # Kubernetes' own 1 s is short for a process that computes on a full node.
            assert probe["timeoutSeconds"] >= 5
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 300, f"{name}: too short for a model to load"

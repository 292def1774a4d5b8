"""The two monitoring components over the overlay `local`: they fit its pods and carry what is committed."""

import os

import kubernetes_validate
import pytest
import yaml

from deploy.monitoring import prometheus_rule
from deploy.monitoring.dashboards import BOARDS, FOLDER
from tests.deploy.manifests import ROOT, SERVICES, Manifest, config_map, containers, of_kind, pod_specs, render
from tests.deploy.test_rendering import KUBERNETES

OURS = {"prometheus", "grafana"}


@pytest.fixture(scope="module")
def with_component(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Manifest, ...]]:
    """Objects of the overlay `local` with each component."""
    rendered = {}
    for name in ("monitoring", "monitoring-standalone"):
        folder = tmp_path_factory.mktemp(name)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "charter",
            "resources": [os.path.relpath(ROOT / "deploy/overlays/local", folder.resolve())],
            "components": [os.path.relpath(ROOT / "deploy/components" / name, folder.resolve())],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        rendered[name] = render(folder)
    return rendered


@pytest.fixture(scope="module")
def operator(with_component: dict[str, tuple[Manifest, ...]]) -> tuple[Manifest, ...]:
    return with_component["monitoring"]


@pytest.fixture(scope="module")
def standalone(with_component: dict[str, tuple[Manifest, ...]]) -> tuple[Manifest, ...]:
    return with_component["monitoring-standalone"]


def only(objects: tuple[Manifest, ...], kind: str, name: str) -> Manifest:
    (found,) = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    return found


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("component", ["monitoring", "monitoring-standalone"])
def test_objects_are_valid(with_component: dict[str, tuple[Manifest, ...]], component: str, version: str) -> None:
    for one in with_component[component]:
        assert one["metadata"].get("namespace", "charter") == "charter"
        # The operator's own kinds are not in the schemas of Kubernetes.
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(one, version, strict=True)


def test_the_operators_rule_is_fresh() -> None:
    assert prometheus_rule.FILE.read_text() == prometheus_rule.text(), "run `make dashboards`"


def test_the_service_monitor_selects_every_service_and_its_metrics(operator: tuple[Manifest, ...]) -> None:
    monitor = only(operator, "ServiceMonitor", "charter")["spec"]
    (endpoint,) = monitor["endpoints"]
    selected = [
        one
        for one in of_kind(operator, "Service")
        if monitor["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
        and endpoint["port"] in {port["name"] for port in one["spec"]["ports"]}
    ]
    assert {one["metadata"]["name"] for one in selected} == set(SERVICES)
    # The label that dashboards and alerts know services by.
    assert [rule["targetLabel"] for rule in endpoint["relabelings"]] == ["app"]
    assert all(one["metadata"]["labels"]["app.kubernetes.io/name"] == one["metadata"]["name"] for one in selected)


def test_the_pod_monitor_finds_the_worker(operator: tuple[Manifest, ...]) -> None:
    (endpoint,) = only(operator, "PodMonitor", "charter-worker")["spec"]["podMetricsEndpoints"]
    ports = {(name, port["name"]) for name, _, one in containers(operator) for port in one["ports"]}
    assert {name for name, port in ports if port == endpoint["port"]} == {"worker"}
    assert endpoint["relabelings"] == [{"targetLabel": "app", "replacement": "worker"}]


@pytest.mark.parametrize("component", ["monitoring", "monitoring-standalone"])
def test_the_dashboards_are_those_that_are_committed(
    with_component: dict[str, tuple[Manifest, ...]], component: str
) -> None:
    (found,) = [one for one in of_kind(with_component[component], "ConfigMap") if "run.json" in one.get("data", {})]
    assert found["data"] == {f"{name}.json": (FOLDER / f"{name}.json").read_text() for name in BOARDS}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    # An annotation of kubectl holds a copy; the API server takes 256 KiB of annotations.
    assert sum(map(len, found["data"].values())) < 200_000


def test_mounted_config_maps_are_there(standalone: tuple[Manifest, ...]) -> None:
    for name, spec in pod_specs(standalone):
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert config_map(standalone, volume["configMap"]["name"]), name


def test_grafana_asks_the_prometheus_that_is_there(standalone: tuple[Manifest, ...]) -> None:
    service = only(standalone, "Service", "prometheus")
    (port,) = service["spec"]["ports"]
    (provisioning,) = [one["data"] for one in of_kind(standalone, "ConfigMap") if "datasources.yaml" in one["data"]]
    (source,) = yaml.safe_load(provisioning["datasources.yaml"])["datasources"]
    assert source["url"] == f"http://prometheus:{port['port']}"
    # What the exemplars call their trace (charter.rpc.tracing), and the data source that docs/monitoring.md names.
    assert source["jsonData"] == {"exemplarTraceIdDestinations": [{"name": "trace_id", "datasourceUid": "traces"}]}
    (provider,) = yaml.safe_load(provisioning["dashboards.yaml"])["providers"]
    ((_, _, grafana),) = [one for one in containers(standalone) if one[0] == "grafana"]
    mounts = {mount["mountPath"]: mount["name"] for mount in grafana["volumeMounts"]}
    assert mounts[provider["options"]["path"]] == "dashboards"


def test_prometheus_may_list_the_pods_of_its_namespace_and_nothing_else(standalone: tuple[Manifest, ...]) -> None:
    assert only(standalone, "Role", "prometheus")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    (subject,) = only(standalone, "RoleBinding", "prometheus")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "prometheus", "namespace": "charter"}
    assert not of_kind(standalone, "ClusterRole", "ClusterRoleBinding")


def test_pods_run_without_rights(standalone: tuple[Manifest, ...]) -> None:
    ours = [one for one in containers(standalone) if one[0] in OURS]
    assert {name for name, _, _ in ours} == OURS
    for name, spec, container in ours:
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert "memory" in container["resources"]["limits"], name
        claimed = {
            claim["metadata"]["name"]
            for one in of_kind(standalone, "StatefulSet")
            if one["metadata"]["name"] == name
            for claim in one["spec"]["volumeClaimTemplates"]
        }
        volumes = {volume["name"] for volume in spec["volumes"]} | claimed
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name

"""What `charter doctor` finds in a small API server with real services behind port-forwards, and what it advises."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from charter.cli.services import SERVICES

from tests.deploy.manifests import BASE, ROOT, Manifest, of_kind, render
from tests.integration.cli import test_cluster
from tests.integration.cli.test_cluster import ON, pod
from tests.integration.cli.test_runs import charter
from tests.support import kubernetes_api
from tests.support.kubernetes_api import Object

services = test_cluster.services
cluster = test_cluster.cluster

CERT_MANAGER = ("Certificate", "CertificateRequest", "Issuer")


def doctor(*arguments: str) -> dict[str, Any]:
    result = charter(*ON, "doctor", "--json", *arguments)
    found = json.loads(result.stdout)
    assert result.exit_code == (1 if any(one["result"] == "failed" for one in found) else 0)
    return {one["check"]: one for one in found}


def storage_class(default: bool = True) -> Object:
    annotations = {"storageclass.kubernetes.io/is-default-class": str(default).lower()}
    return {"metadata": {"name": "fast", "annotations": annotations}, "provisioner": "x"}


def test_doctor_is_content_with_a_cluster_that_works(cluster: kubernetes_api.Cluster) -> None:
    cluster.put("storageclasses", storage_class())
    found = doctor()
    assert {check: one["result"] for check, one in found.items()} == {
        "API server": "ok",
        "rights to use": "ok",
        # This person may use Charter and not apply it.
        "rights to apply": "warning",
        "storage class": "ok",
        "pods": "ok",
        "GPUs": "ok",
        **{f"service {name}": "ok" for name in SERVICES},
    }
    text = charter(*ON, "doctor").stdout
    assert "Kubernetes v1.36.1" in text


def image_missing(cluster: kubernetes_api.Cluster) -> None:
    broken = pod("judge", ready=False)
    waiting = {"waiting": {"reason": "ImagePullBackOff"}}
    status = {"name": "judge", "image": "charter:1", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
    broken["status"]["containerStatuses"] = [status]
    cluster.put("pods", broken)


def unschedulable(cluster: kubernetes_api.Cluster) -> None:
    broken = pod("policy", ready=False)
    condition = {"type": "PodScheduled", "status": "False", "message": "Insufficient nvidia.com/gpu"}
    broken["status"]["conditions"].append(condition)
    broken["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    cluster.put("pods", broken)


def old(cluster: kubernetes_api.Cluster) -> None:
    cluster.documents["/version/"]["minor"] = "29"


def no_rights(cluster: kubernetes_api.Cluster) -> None:
    cluster.rules[:] = [rule for rule in cluster.rules if "pods/portforward" not in rule["resources"]]


def nothing(cluster: kubernetes_api.Cluster) -> None:
    for one in cluster.of("pods"):
        cluster.remove("pods", "charter", one["metadata"]["name"])


@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        (old, "API server", "upgrade to 1.31"),
        (no_rights, "rights to use", "bind a Role"),
        (image_missing, "pod judge-0", "bring it to the node"),
        (unschedulable, "pod policy-0", "lower the requests"),
        (unschedulable, "GPUs", "add GPU nodes"),
        (nothing, "pods", "kubectl apply -k"),
        (nothing, "service trainer", "describe pod"),
    ],
)
def test_doctor_says_what_to_do(
    cluster: kubernetes_api.Cluster, fault: Callable[[kubernetes_api.Cluster], None], check: str, words: str
) -> None:
    with cluster.changed:
        fault(cluster)
    one = doctor()[check]
    assert one["result"] == "failed"
    assert words in one["advice"]


def serve(cluster: kubernetes_api.Cluster, group: str, versions: tuple[str, ...], kinds: tuple[str, ...] = ()) -> None:
    """Have the API server serve versions of a group of custom resources, as their definitions make it do."""
    names = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    groups = cluster.documents["/apis/"]["groups"]
    groups[:] = [one for one in groups if one["name"] != group]
    groups.append({"name": group, "versions": names, "preferredVersion": names[0]})
    resources: list[Object] = [
        {"name": f"{kind.lower()}s{sub}", "singularName": "", "namespaced": True, "kind": kind, "verbs": ["create"]}
        for kind in kinds
        for sub in ("", "/status")
    ]
    for version in versions:
        document = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/{version}"}
        cluster.documents[f"/apis/{group}/{version}"] = {**document, "resources": resources}


def test_doctor_looks_for_the_definitions_that_components_are_written_for(cluster: kubernetes_api.Cluster) -> None:
    asked = ("--component", "mtls", "--component", "postgres", "--component", "autoscaling")
    found = doctor(*asked)
    assert found["component mtls"]["advice"].startswith("install cert-manager 1.13 or newer: https://")
    assert found["component autoscaling"]["advice"].startswith("install KEDA 2.14 or newer: https://")
    assert "create secret generic postgres" in found["component postgres"]["advice"]

    # The group alone is not enough: an old release has other versions of it, half an installation has other kinds.
    serve(cluster, "cert-manager.io", ("v1alpha2", "v1beta1"), CERT_MANAGER)
    serve(cluster, "keda.sh", ("v1alpha1",), ("ScaledJob",))
    found = doctor(*asked)
    assert found["component mtls"]["result"] == found["component autoscaling"]["result"] == "failed"
    assert found["component mtls"]["found"].endswith("in v1alpha2, v1beta1, the manifests need v1")
    assert "bring it to cert-manager 1.13" in found["component mtls"]["advice"]
    assert found["component autoscaling"]["found"] == "keda.sh/v1alpha1 has no ScaledObject"
    assert "install all definitions" in found["component autoscaling"]["advice"]

    serve(cluster, "cert-manager.io", ("v1",), CERT_MANAGER)
    serve(cluster, "keda.sh", ("v1alpha1",), ("ScaledJob", "ScaledObject"))
    cluster.put("secrets", {"metadata": {"name": "postgres", "namespace": "charter"}, "data": {}})
    found = doctor(*asked)
    assert {found[f"component {one}"]["result"] for one in ("mtls", "postgres", "autoscaling")} == {"ok"}
    # This person may not apply it.
    lacking = found["rights to apply component mtls"]
    assert (lacking["result"], lacking["found"]) == ("warning", "missing: create certificates, create issuers")
    cluster.rules.append(
        {"apiGroups": ["cert-manager.io"], "resources": ["certificates", "issuers"], "verbs": ["create"]}
    )
    assert doctor(*asked)["rights to apply component mtls"]["result"] == "ok"


def test_doctor_refuses_a_component_that_it_does_not_know(cluster: kubernetes_api.Cluster) -> None:
    result = charter(*ON, "doctor", "--component", "mlts")
    assert result.exit_code == 1
    assert "mtls" in result.stderr


def worker_template(folder: str = "") -> Manifest:
    """The CronJob of the base or of an overlay, as an API server stores it."""
    (found,) = of_kind(render(ROOT / "deploy" / folder if folder else BASE), "CronJob")
    stored: Manifest = json.loads(json.dumps(found))
    stored["metadata"]["namespace"] = "charter"
    for container in stored["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]:
        for amounts in container["resources"].values():
            amounts.update({name: str(amount) for name, amount in amounts.items()})
    return stored


def test_doctor_looks_for_the_queue_and_the_priority_class_of_the_workers(cluster: kubernetes_api.Cluster) -> None:
    template = worker_template()
    job = template["spec"]["jobTemplate"]
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "research"
    job["spec"]["template"]["spec"]["priorityClassName"] = "patient"
    cluster.put("cronjobs", template)
    cluster.rules += [
        {"apiGroups": ["kueue.x-k8s.io"], "resources": ["localqueues"], "verbs": ["list"]},
        {"apiGroups": ["scheduling.k8s.io"], "resources": ["priorityclasses"], "verbs": ["list"]},
    ]
    found = doctor()
    assert "install Kueue" in found["queue"]["advice"]
    # Kueue in whatever version it serves: only its label is in our manifests.
    serve(cluster, "kueue.x-k8s.io", ("v1beta2", "v1beta1"), ("LocalQueue",))
    queue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue"}
    cluster.put("localqueues", {**queue, "metadata": {"name": "teaching", "namespace": "charter"}})
    cluster.put("priorityclasses", {"metadata": {"name": "urgent"}, "value": 10})
    found = doctor()
    assert found["queue"]["result"] == found["priority class"]["result"] == "failed"
    assert found["queue"]["advice"].endswith("there are: teaching")
    assert "urgent" in found["priority class"]["advice"]
    cluster.put("localqueues", {**queue, "metadata": {"name": "research", "namespace": "charter"}})
    cluster.put("priorityclasses", {"metadata": {"name": "patient"}, "value": 1})
    found = doctor()
    assert found["queue"]["result"] == found["priority class"]["result"] == "ok"


def node(name: str, gpus: int, labelled: bool = True) -> Object:
    labels = {"nvidia.com/gpu.present": "true"} if labelled else {}
    return {"metadata": {"name": name, "labels": labels}, "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}}}


def test_doctor_counts_gpus_node_by_node_and_with_those_of_a_run(cluster: kubernetes_api.Cluster) -> None:
    wanted = pod("policy")
    wanted["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    wanted["spec"]["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
    cluster.put("pods", wanted)
    cluster.put("cronjobs", worker_template("overlays/gpu"))
    for number in range(3):
        cluster.put("nodes", node(f"small-{number}", 4))
    # Twelve GPUs, and none of the nodes can hold the worker.
    found = doctor()["GPUs"]
    assert found["result"] == "failed"
    assert found["found"].startswith("the worker of a run asks for 8 on one node")
    assert "sizes.yaml" in found["advice"]
    # One can, and the pods' node selector does not let them go there.
    cluster.put("nodes", node("large", 8, labelled=False))
    found = doctor()["GPUs"]
    assert found["advice"] == "label the nodes with GPUs: kubectl label node NODE nvidia.com/gpu.present=true"
    cluster.put("nodes", node("large", 8))
    assert doctor()["GPUs"] == {
        "check": "GPUs",
        "result": "ok",
        "found": "pods ask for 9, the nodes offer 20",
        "advice": "",
    }


def test_doctor_says_what_gpus_there_are_before_anything_is_applied(cluster: kubernetes_api.Cluster) -> None:
    nothing(cluster)
    cluster.put("nodes", node("large", 8))
    cluster.put("nodes", node("small", 4))
    assert doctor()["GPUs"]["found"] == "no pod asks for one; the nodes offer 12, at most 8 on one node"


def test_doctor_looks_for_the_driver_and_the_secret_of_artifacts_s3(cluster: kubernetes_api.Cluster) -> None:
    def look() -> list[tuple[str, str]]:
        result = charter(*ON, "doctor", "--json", "--component", "artifacts-s3")
        found = [one for one in json.loads(result.stdout) if one["check"] == "component artifacts-s3"]
        assert result.exit_code == int(any(one["result"] == "failed" for one in json.loads(result.stdout)))
        return [(one["result"], one["advice"]) for one in found]

    # Who may not list drivers learns that, and not that there is none.
    assert look() == [("failed", "ask for the right to read it")]
    cluster.rules.append({"apiGroups": ["storage.k8s.io"], "resources": ["csidrivers"], "verbs": ["list"]})
    (driver, secret) = look()
    assert driver == ("failed", "install it: https://juicefs.com/docs/csi/getting_started")
    assert secret[0] == "failed"
    assert "kubectl -n charter create secret generic artifacts-s3 --from-literal=name=charter" in secret[1]
    cluster.put("csidrivers", {"metadata": {"name": "csi.juicefs.com"}, "spec": {}})
    cluster.put("secrets", {"metadata": {"name": "artifacts-s3", "namespace": "charter"}, "data": {}})
    cluster.put("storageclasses", storage_class())
    assert look() == [("ok", ""), ("ok", "")]

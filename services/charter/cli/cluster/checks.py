"""The checks of `charter doctor`. Each looks at one thing and says what it found and what to do."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from charter.cli.calls import health
from charter.cli.cluster.access import Cluster, connected
from charter.cli.cluster.components import component
from charter.cli.cluster.findings import Finding, rights_finding
from charter.cli.cluster.workers import gpus, worker_template, workers
from charter.cli.services import SERVICES, endpoint

# podFailurePolicy of Jobs is stable from 1.31 on, native gRPC probes from 1.27 on.
OLDEST = (1, 31)
# Label that all of Charter's objects carry.
PART_OF = "app.kubernetes.io/part-of"
# What the commands need; (group, resource, verb).
RIGHTS = (("", "pods", "list"), ("", "pods/portforward", "get"), ("", "secrets", "get"))
# What `kubectl apply -k` needs besides.
APPLY_RIGHTS = (
    ("apps", "statefulsets", "create"),
    ("batch", "cronjobs", "create"),
    ("rbac.authorization.k8s.io", "roles", "create"),
)
# Reason of a waiting container -> what to do.
WAITING = {
    "ImagePullBackOff": "build the image and bring it to the node, or push it and set its name (docs/kubernetes.md)",
    "ErrImagePull": "build the image and bring it to the node, or push it and set its name (docs/kubernetes.md)",
    "InvalidImageName": "the image's name is wrong: `kustomize edit set image`",
    "CrashLoopBackOff": "it ends again and again: `kubectl logs --previous` says why",
    "CreateContainerConfigError": "a ConfigMap or Secret that it names is missing: `kubectl describe pod` names it",
}


def examine(cluster: Cluster, components: Sequence[str]) -> list[Finding]:
    """Every check, in the order in which problems should be solved."""
    first = _guarded("API server", lambda: _version(cluster))
    if first[0].result == "failed":
        return first
    pods = cache(client.CoreV1Api(cluster.api).list_namespaced_pod)
    template = cache(worker_template)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "permissions": lambda: _rights(cluster),
        "storage": lambda: _storage(cluster),
        **{f"component {one}": partial(component, cluster, one) for one in components},
        "workers": lambda: workers(cluster, template(cluster)),
        "pods": lambda: _pods(cluster.namespace, pods(cluster.namespace).items),
        "GPUs": lambda: gpus(cluster, pods(cluster.namespace).items, template(cluster)),
        "services": lambda: _services(cluster),
    }
    return first + [finding for name, check in checks.items() for finding in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """A check's findings; a refused or failed request is a finding too."""
    try:
        return list(check())
    except ApiException as error:
        who = "ask for the right to read it" if error.status == 403 else "see the API server's message"
        return [Finding(name, "failed", f"the API server answered {error.status} {error.reason}", who)]
    except HTTPError as error:
        return [Finding(name, "failed", f"cannot be reached: {error}", "check the context, VPN and kubeconfig")]


def _version(cluster: Cluster) -> Iterator[Finding]:
    found = client.VersionApi(cluster.api).get_code()
    number = (int(found.major), int(re.sub(r"\D", "", found.minor)))
    if number < OLDEST:
        advice = f"upgrade to {OLDEST[0]}.{OLDEST[1]} or newer: Jobs need podFailurePolicy"
        yield Finding("API server", "failed", f"Kubernetes {found.git_version}", advice)
    else:
        yield Finding("API server", "ok", f"Kubernetes {found.git_version}")


def _rights(cluster: Cluster) -> Iterator[Finding]:
    for name, rights, result in (("use", RIGHTS, "failed"), ("apply", APPLY_RIGHTS, "warning")):
        yield rights_finding(cluster, f"rights to {name}", rights, result)


def _storage(cluster: Cluster) -> Iterator[Finding]:
    claims = client.CoreV1Api(cluster.api).list_namespaced_persistent_volume_claim(cluster.namespace).items
    waiting = [claim.metadata.name for claim in claims if claim.status.phase != "Bound"]
    classes = client.StorageV1Api(cluster.api).list_storage_class().items
    key = "storageclass.kubernetes.io/is-default-class"
    default = [one.metadata.name for one in classes if (one.metadata.annotations or {}).get(key) == "true"]
    if not default and (waiting or not claims):
        known = ", ".join(one.metadata.name for one in classes) or "none at all"
        advice = f"mark one as the default, or set storageClassName in the overlay; there are: {known}"
        yield Finding("storage class", "failed", "none is the default", advice)
    else:
        yield Finding("storage class", "ok", default[0] if default else "none is the default, and all claims are bound")
    if waiting:
        advice = "`kubectl describe pvc` says why; many-node volumes (ReadWriteMany) need a class that has them"
        yield Finding("volumes", "warning", f"not bound: {', '.join(waiting)}", advice)
    elif claims:
        yield Finding("volumes", "ok", f"{len(claims)} bound")


def _pods(namespace: str, pods: Sequence[Any]) -> Iterator[Finding]:
    """What keeps Charter's own pods, among those of the namespace, from running."""
    ours = [pod for pod in pods if (pod.metadata.labels or {}).get(PART_OF) == "charter"]
    if not ours:
        advice = "kubectl apply -k deploy/overlays/local (or gpu), or another namespace: --namespace"
        yield Finding("pods", "failed", f"none of Charter in namespace {namespace}", advice)
        return
    troubled = False
    for pod in ours:
        for found, advice in _troubles(pod):
            troubled = True
            yield Finding(f"pod {pod.metadata.name}", "failed", found, advice)
    if not troubled:
        yield Finding("pods", "ok", f"{len(ours)}, none in trouble")


def _troubles(pod: Any) -> Iterator[tuple[str, str]]:
    """What keeps a pod from running, and what to do."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            yield (
                f"not scheduled: {condition.message}",
                "free or add what is missing, or lower the requests in the overlay",
            )
    for status in [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]:
        if (waiting := status.state.waiting) and waiting.reason in WAITING:
            yield f"{waiting.reason} ({status.image})", WAITING[waiting.reason]
        last = status.last_state.terminated if status.last_state else None
        if last and last.reason == "OOMKilled":
            yield "was killed for its memory", "raise its memory limit in the overlay's sizes.yaml"


def _services(cluster: Cluster) -> Iterator[Finding]:
    with connected(cluster):
        for name in SERVICES:
            status = health(name, endpoint(name).main)
            advice = {
                "SERVING": "",
                "NOT_SERVING": "it loads its model, or drains: look again in a minute",
            }.get(status, f"`kubectl -n {cluster.namespace} describe pod -l app.kubernetes.io/name={name}` says why")
            yield Finding(f"service {name}", "failed" if advice else "ok", status, advice)

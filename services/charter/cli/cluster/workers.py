"""What `charter doctor` says about the Jobs that runs will be: their queue, their priority, and GPUs for all pods."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from charter.cli.cluster.access import Cluster
from charter.cli.cluster.components import served_versions
from charter.cli.cluster.findings import Finding

GPU = "nvidia.com/gpu"
# The CronJob that the trainer copies (deploy/base/worker.yaml).
TEMPLATE = "worker"
KUEUE = "kueue.x-k8s.io"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class _Asker:
    """A pod, or the pods of the next run, that want GPUs of one node each."""

    name: str
    gpus: int
    pods: int
    selector: dict[str, str]


def worker_template(cluster: Cluster) -> Any | None:
    """The template of the workers' Jobs; None before Charter is applied."""
    try:
        return client.BatchV1Api(cluster.api).read_namespaced_cron_job(TEMPLATE, cluster.namespace)
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def workers(cluster: Cluster, template: Any | None) -> Iterator[Finding]:
    """Whether the queue and the priority class that the template names are there."""
    if template is None:
        return
    job = template.spec.job_template
    if queue := ((job.metadata and job.metadata.labels) or {}).get(QUEUE_LABEL):
        yield _queue(cluster, queue)
    if priority := job.spec.template.spec.priority_class_name:
        known = [one.metadata.name for one in client.SchedulingV1Api(cluster.api).list_priority_class().items]
        if priority in known:
            yield Finding("priority class", "ok", f"`{priority}` is there")
        else:
            advice = f"create it, or name one of {', '.join(known)} in the CronJob `{TEMPLATE}`"
            yield Finding("priority class", "failed", f"workers want `{priority}`, which does not exist", advice)


def _queue(cluster: Cluster, queue: str) -> Finding:
    wanted = f"workers are labelled for Kueue's queue `{queue}`"
    versions = served_versions(cluster, KUEUE)
    if not versions:
        # Without Kueue nobody reads the label, and the Jobs start at once.
        advice = f"install Kueue (https://kueue.sigs.k8s.io), or take the label off the CronJob `{TEMPLATE}`"
        return Finding("queue", "failed", f"{wanted}, and Kueue is not installed", advice)
    found = client.CustomObjectsApi(cluster.api).list_namespaced_custom_object(
        KUEUE, versions[0], cluster.namespace, "localqueues"
    )
    names = [one["metadata"]["name"] for one in found["items"]]
    if queue not in names:
        known = ", ".join(names) or "none at all"
        advice = f"create a LocalQueue `{queue}` there, or change the label; there are: {known}"
        return Finding("queue", "failed", f"{wanted}, which namespace {cluster.namespace} does not have", advice)
    return Finding("queue", "ok", f"the LocalQueue `{queue}` is there")


def gpus(cluster: Cluster, pods: Sequence[Any], template: Any | None) -> Iterator[Finding]:
    """Whether the nodes have the GPUs that the namespace's pods, whoever's they are, and a run ask for."""
    askers = list(_askers(pods, template))
    # Before anything is applied, what there is is worth knowing.
    if not askers and pods:
        yield Finding("GPUs", "ok", "no pod asks for one")
        return
    nodes = [(node, _count(node.status.allocatable)) for node in client.CoreV1Api(cluster.api).list_node().items]
    wanted, there = sum(one.gpus * one.pods for one in askers), sum(count for _, count in nodes)
    most = max((count for _, count in nodes), default=0)
    if not askers:
        yield Finding("GPUs", "ok", f"no pod asks for one; the nodes offer {there}, at most {most} on one node")
        return
    for one in askers:
        fitting = [count for node, count in nodes if one.selector.items() <= (node.metadata.labels or {}).items()]
        if one.gpus > (best := max(fitting, default=0)):
            labels = ", ".join(f"{key}={value}" for key, value in one.selector.items())
            which = f" labelled {labels}" if labels else ""
            found = f"{one.name} asks for {one.gpus} on one node, and no node{which} has more than {best}"
            advice = "lower the number in the overlay's sizes.yaml, or add such a node"
            if best < most:
                advice = f"label the nodes with GPUs: kubectl label node NODE {labels.replace(', ', ' ')}"
            yield Finding("GPUs", "failed", found, advice if most else _NO_PLUGIN)
            return
    if there < wanted:
        yield Finding("GPUs", "failed", f"pods ask for {wanted}, the nodes offer {there}", _NO_PLUGIN)
    else:
        yield Finding("GPUs", "ok", f"pods ask for {wanted}, the nodes offer {there}")


_NO_PLUGIN = "add GPU nodes, or install NVIDIA's device plugin on those that are there"


def _askers(pods: Sequence[Any], template: Any | None) -> Iterator[_Asker]:
    """Pods that have not ended, and the pods of one run unless one is there."""
    running = False
    for pod in pods:
        if pod.status.phase in _ENDED:
            continue
        running = running or (pod.metadata.labels or {}).get("app.kubernetes.io/name") == TEMPLATE
        if count := _limits(pod.spec):
            yield _Asker(f"pod {pod.metadata.name}", count, 1, pod.spec.node_selector or {})
    if template is not None and not running:
        job = template.spec.job_template.spec
        if count := _limits(job.template.spec):
            selector = job.template.spec.node_selector or {}
            yield _Asker("the worker of a run", count, job.parallelism or 1, selector)


def _limits(spec: Any) -> int:
    return sum(_count(one.resources.limits) for one in spec.containers if one.resources)


def _count(quantities: Any) -> int:
    return int((quantities or {}).get(GPU, 0))

"""Starts each worker as an Indexed Job of a Kubernetes cluster.

What such a Job looks like is a manifest, not code: the suspended CronJob ``worker`` of the trainer's namespace
(deploy/base/worker.yaml) is the template, so that image, resources, volumes, node selectors, priority class and the
label of a Kueue queue are set where everything else is, by kustomize. The launcher adds a name, the owner and the
command.
"""

import asyncio
import copy
import json
import logging
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.watch import Watch

from charter.trainer.last_words import last_words
from charter.trainer.launcher import WorkerExit, WorkerOrder

logger = logging.getLogger("charter.trainer")

TEMPLATE = "worker"
CONTAINER = "worker"
GPU = "nvidia.com/gpu"
RENDEZVOUS_PORT = 29500
RUN_ANNOTATION = "charter/run"
ATTEMPT_ANNOTATION = "charter/attempt"

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# The API server ends a watch after this time; a new one replaces a connection that died unnoticed.
_WATCH_SECONDS = 300
_REQUEST_SECONDS = 30
# Between two tries while the API server is away.
_RETRY_SECONDS = 2.0
# A pod's host name, JOB-INDEX, has at most 63 characters.
_RUN_SUFFIX = len("-20260101-000000-abcd")
_MOST_NAME = 30

Manifest = dict[str, Any]


class LaunchError(OSError):
    """A worker's Job could not be created; the message says what to do."""


class KubernetesLauncher:
    """Launcher of Jobs in one namespace. A worker is known by the name of its Job."""

    shares_files = False

    def __init__(self, namespace: str, configuration: client.Configuration) -> None:
        self._namespace = namespace
        self._configuration = configuration

    @classmethod
    def in_cluster(cls) -> "KubernetesLauncher":
        """For a trainer in a pod, with the rights of its ServiceAccount. Raises ``LaunchError`` elsewhere."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(configuration)
            return cls(_NAMESPACE_FILE.read_text().strip(), configuration)
        except (config.ConfigException, OSError) as error:
            raise LaunchError(
                "--launcher kubernetes works in a pod with a mounted ServiceAccount token "
                f"(deploy/base/trainer.yaml): {error}"
            ) from error

    async def start(self, order: WorkerOrder) -> str:
        """Create the Job of this attempt; one that is there already is taken as it is."""
        name = job_name(order)
        try:
            async with self._api() as api:
                batch = client.BatchV1Api(api)
                template = await batch.read_namespaced_cron_job(
                    TEMPLATE, self._namespace, _request_timeout=_REQUEST_SECONDS
                )
                job = job_from_template(api.sanitize_for_serialization(template), order)
                await batch.create_namespaced_job(
                    self._namespace, client.V1Job.from_dict(job), _request_timeout=_REQUEST_SECONDS
                )
        except ApiException as error:
            # The answer to an earlier try was lost.
            if error.status != 409:
                raise LaunchError(_explained(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise LaunchError(f"the Kubernetes API server cannot be reached: {error!r}") from error
        return name

    def find(self, order: WorkerOrder) -> str:
        """Name of the attempt's Job, whether it is there or not."""
        return job_name(order)

    async def wait(self, worker: str, artifacts: Path) -> WorkerExit:
        """Return when the Job has completed, failed, or is gone. An API server that is away is waited for."""
        while True:
            try:
                if ended := await self._wait_a_while(worker):
                    return ended
            except (ApiException, aiohttp.ClientError, TimeoutError) as error:
                reason = _explained(error) if isinstance(error, ApiException) else repr(error)
                logger.warning("the Job cannot be watched", extra={"job": worker, "reason": reason})
                await asyncio.sleep(_RETRY_SECONDS)

    async def stop(self, worker: str, force: bool) -> None:
        """Delete the Job. Its pods get SIGTERM, and SIGKILL after their grace; with ``force`` nobody waits for them."""
        async with self._api() as api:
            try:
                await client.BatchV1Api(api).delete_namespaced_job(
                    worker,
                    self._namespace,
                    # In the foreground the Job goes after its pods, so that the run does not end before they have.
                    propagation_policy="Background" if force else "Foreground",
                    _request_timeout=_REQUEST_SECONDS,
                )
            except ApiException as error:
                if error.status != 404:
                    raise

    def _api(self) -> client.ApiClient:
        return client.ApiClient(self._configuration)

    async def _wait_a_while(self, name: str) -> WorkerExit | None:
        """How the Job ended; None when a watch came to its end before that."""
        selected: dict[str, Any] = {"namespace": self._namespace, "field_selector": f"metadata.name={name}"}
        async with self._api() as api:
            batch = client.BatchV1Api(api)
            found = await batch.list_namespaced_job(**selected, _request_timeout=_REQUEST_SECONDS)
            if not found.items:
                return WorkerExit(None, f"its Job {name} is gone")
            if condition := _final(found.items[0]):
                return await self._exit(api, name, condition)
            since = found.metadata.resource_version
            async with Watch().stream(
                batch.list_namespaced_job, **selected, resource_version=since, timeout_seconds=_WATCH_SECONDS
            ) as events:
                async for event in events:
                    if event["type"] == "DELETED":
                        return WorkerExit(None, f"its Job {name} was deleted")
                    if condition := _final(event["object"]):
                        return await self._exit(api, name, condition)
        return None

    async def _exit(self, api: client.ApiClient, name: str, condition: client.V1JobCondition) -> WorkerExit:
        if condition.type == "Complete":
            return WorkerExit(0, f"its Job {name} completed")
        pods = await client.CoreV1Api(api).list_namespaced_pod(
            self._namespace,
            label_selector=f"batch.kubernetes.io/job-name={name}",
            _request_timeout=_REQUEST_SECONDS,
        )
        why = f"its Job {name} failed ({condition.reason}: {condition.message})"
        if (last := _last_termination(pods.items)) is None:
            return WorkerExit(None, why)
        pod, state = last
        how = f"pod {pod} ended with exit status {state.exit_code}"
        if state.reason == "OOMKilled":
            how += ", out of memory: raise the memory limit of the CronJob `worker`"
        # The template has the end of the log kept as the termination message.
        said = last_words(state.message or "")
        if said.text:
            how += f"; its last line is: {said.text}"
        return WorkerExit(state.exit_code, f"{why}; {how}", said.why(state.exit_code))


def job_name(order: WorkerOrder) -> str:
    """Name of an attempt's Job: the run's id, shortened so that its pods' host names fit, and the attempt."""
    name, suffix = order.run_id[:-_RUN_SUFFIX], order.run_id[-_RUN_SUFFIX:]
    return f"{name[:_MOST_NAME].rstrip('-')}{suffix}-{order.attempt}"


def job_from_template(template: Manifest, order: WorkerOrder) -> Manifest:
    """The Job of an attempt: the CronJob's ``jobTemplate`` with a name, an owner and the command.

    The CronJob owns its Jobs, so that all of them go with it. It is not their controller: its history limits would
    delete them. Raises ``LaunchError`` when the template has no container ``worker``.
    """
    job = copy.deepcopy(template["spec"]["jobTemplate"])
    name = job_name(order)
    metadata = job.setdefault("metadata", {})
    metadata["name"] = name
    annotations = {RUN_ANNOTATION: order.run_id, ATTEMPT_ANNOTATION: str(order.attempt)}
    metadata["annotations"] = metadata.get("annotations", {}) | annotations
    metadata["ownerReferences"] = [
        {"apiVersion": "batch/v1", "kind": "CronJob", "name": TEMPLATE, "uid": template["metadata"]["uid"]}
    ]
    pod = job["spec"]["template"]["spec"]
    containers = [one for one in pod["containers"] if one["name"] == CONTAINER]
    if not containers:
        raise LaunchError(f"the CronJob `{TEMPLATE}` has no container `{CONTAINER}`; see deploy/base/worker.yaml")
    processes = int(containers[0].get("resources", {}).get("limits", {}).get(GPU, 1))
    containers[0]["command"] = [
        *_launcher_of(name, job["spec"].get("completions", 1), processes, pod.get("subdomain", TEMPLATE)),
        "-m",
        "charter.worker",
        f"--run-id={order.run_id}",
        f"--attempt={order.attempt}",
        f"--trainer={order.trainer}",
        f"--artifacts={order.artifacts}",
        f"--spec={order.artifacts / 'spec.json'}",
    ]
    return {"apiVersion": "batch/v1", "kind": "Job", **job}


def _launcher_of(job: str, pods: int, processes: int, service: str) -> list[str]:
    """What starts the worker's module: Python for one process, torchrun for more, which meet at the pod of index 0.

    Not torchrun itself, whose exit status would not tell a cancelled worker from a failed one.
    """
    if pods * processes == 1:
        return ["python"]
    return [
        "python",
        "-m",
        "charter.worker.training.torchrun",
        f"--nnodes={pods}",
        f"--nproc-per-node={processes}",
        # Kubernetes fills it in: the Job controller sets the variable in each pod.
        "--node-rank=$(JOB_COMPLETION_INDEX)",
        # The Job controller restarts pods; then all of them meet again.
        "--max-restarts=0",
        f"--master-addr={job}-0.{service}",
        f"--master-port={RENDEZVOUS_PORT}",
    ]


def _final(job: client.V1Job) -> client.V1JobCondition | None:
    """The condition that says that a Job has ended."""
    conditions = (job.status.conditions if job.status else None) or []
    return next((one for one in conditions if one.type in ("Complete", "Failed") and one.status == "True"), None)


def _last_termination(pods: list[client.V1Pod]) -> tuple[str, client.V1ContainerStateTerminated] | None:
    """Pod and state of the worker container that ended last."""
    ended = [
        (pod.metadata.name, status.state.terminated)
        for pod in pods
        for status in ((pod.status.container_statuses if pod.status else None) or [])
        if status.name == CONTAINER and status.state and status.state.terminated
    ]
    return max(ended, key=lambda one: one[1].finished_at, default=None)


def _explained(error: ApiException) -> str:
    """The API server's own words, and what to do about a missing right or template."""
    try:
        message = json.loads(error.body or "")["message"]
    except (ValueError, TypeError, KeyError):
        message = f"{error.status} {error.reason}"
    match error.status:
        case 403:
            return f"{message}. Apply deploy/base/trainer.yaml, whose Role gives the trainer what it needs"
        case 404:
            return f"{message}. Apply deploy/base/worker.yaml, which has the template of the workers' Jobs"
    return f"the Kubernetes API server refused: {message}"

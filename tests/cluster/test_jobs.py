"""The launcher with the rights of the trainer's ServiceAccount, and the real Job controller and garbage collector.

No node takes the pods (their selector matches none); the tests end them by hand, as a kubelet would.
"""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from charter.trainer.kubernetes_launcher import KubernetesLauncher
from charter.trainer.launcher import WorkerExit, WorkerOrder
from charter.worker.__main__ import REFUSED, STOPPED
from kubernetes.aio import client, config

from tests.cluster.access import NAMESPACE, apply, chosen, get, kubeconfig_of, kubectl, until

ORDER = WorkerOrder("a-run-20260101-000000-abcd", 1, Path("/runs/x"), "trainer:50052")


@pytest.fixture
def template(namespace: str) -> Iterator[None]:
    """The trainer's rights and the template of its Jobs; the Jobs of a test go with the template."""
    (cron_job,) = chosen("CronJob/worker")
    job = cron_job["spec"]["jobTemplate"]["spec"]
    job["template"]["spec"]["nodeSelector"] = {"charter/test": "no-node"}
    job["backoffLimit"] = 1
    apply([cron_job, *chosen("ServiceAccount/trainer", "ServiceAccount/worker", "Role/trainer", "RoleBinding/trainer")])
    yield
    kubectl("delete", "cronjob", "worker", "--ignore-not-found", "--cascade=foreground", "--timeout=60s")


@pytest.fixture
async def launcher(template: None, tmp_path: Path) -> KubernetesLauncher:
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig_of("trainer", tmp_path)), client_configuration=configuration)
    return KubernetesLauncher(NAMESPACE, configuration)


def pods(job: str) -> list[dict[str, Any]]:
    """Pods of a Job that have not ended."""
    found = get("pods", "-l", f"batch.kubernetes.io/job-name={job}")["items"]
    return [pod for pod in found if pod["status"]["phase"] == "Pending"]


def end_pod(pod: dict[str, Any], status: int, message: str = "", evicted: bool = False) -> None:
    """Write what a kubelet writes when a pod's container has ended."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": status, "reason": "Error" if status else "Completed", "message": message, "finishedAt": now}
    container = {"name": "worker", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    conditions = [
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "lastTransitionTime": now}
    ]
    patch = {
        "phase": "Failed" if status else "Succeeded",
        "containerStatuses": [container | {"state": {"terminated": ended}}],
        "conditions": conditions if evicted else [],
    }
    name = pod["metadata"]["name"]
    kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": patch}))


async def ended(waiting: "asyncio.Task[WorkerExit]") -> WorkerExit:
    return await asyncio.wait_for(waiting, 120)


async def test_a_run_is_an_indexed_job_that_completes(launcher: KubernetesLauncher) -> None:
    name = await launcher.start(ORDER)
    assert await launcher.start(ORDER) == name, "the same attempt is the same Job"
    waiting = asyncio.create_task(launcher.wait(name, ORDER.artifacts))
    (pod,) = await asyncio.to_thread(until, lambda: pods(name))
    # What torchrun's rendezvous and the headless Service need.
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == (f"{name}-0", "worker")
    assert "JOB_COMPLETION_INDEX" in {one["name"] for one in pod["spec"]["containers"][0]["env"]}
    assert pod["spec"]["serviceAccountName"] == "worker"
    assert not waiting.done()
    end_pod(pod, 0)
    assert await ended(waiting) == WorkerExit(0, f"its Job {name} completed")
    # As a trainer that starts again does.
    assert (await launcher.wait(name, ORDER.artifacts)).status == 0


async def test_an_eviction_is_no_failure_and_crashes_count(launcher: KubernetesLauncher) -> None:
    name = await launcher.start(ORDER)
    waiting = asyncio.create_task(launcher.wait(name, ORDER.artifacts))
    for _ in range(2):
        (pod,) = await asyncio.to_thread(until, lambda: pods(name))
        end_pod(pod, 143, evicted=True)
    for _ in range(2):
        (pod,) = await asyncio.to_thread(until, lambda: pods(name))
        assert not waiting.done()
        end_pod(pod, 1, "first line\nthere is no room on the moon")
    found = await ended(waiting)
    assert found.status == 1
    assert "BackoffLimitExceeded" in found.reason
    assert found.reason.endswith("its last line is: there is no room on the moon")


@pytest.mark.parametrize("status", [REFUSED, STOPPED])
async def test_a_final_status_is_not_tried_again_and_the_next_attempt_is_a_new_job(
    launcher: KubernetesLauncher, status: int
) -> None:
    name = await launcher.start(ORDER)
    waiting = asyncio.create_task(launcher.wait(name, ORDER.artifacts))
    (pod,) = await asyncio.to_thread(until, lambda: pods(name))
    end_pod(pod, status)
    found = await ended(waiting)
    assert found.status == status
    assert "PodFailurePolicy" in found.reason
    second = await launcher.start(WorkerOrder(ORDER.run_id, 2, ORDER.artifacts, ORDER.trainer))
    assert second != name
    assert await asyncio.to_thread(until, lambda: pods(second))


@pytest.mark.parametrize("force", [False, True])
async def test_a_cancelled_run_ends_after_its_pods_unless_forced(launcher: KubernetesLauncher, force: bool) -> None:
    name = await launcher.start(ORDER)
    waiting = asyncio.create_task(launcher.wait(name, ORDER.artifacts))
    (pod,) = await asyncio.to_thread(until, lambda: pods(name))
    # A pod that takes its time to end.
    pod_name = pod["metadata"]["name"]
    finalizers = pod["metadata"]["finalizers"]
    patch = {"metadata": {"finalizers": [*finalizers, "charter/test"]}}
    kubectl("patch", "pod", pod_name, "--type=merge", "-p", json.dumps(patch))
    await launcher.stop(name, force)
    await asyncio.to_thread(until, lambda: get("pod", pod_name)["metadata"].get("deletionTimestamp"))
    if force:
        assert await ended(waiting) == WorkerExit(None, f"its Job {name} was deleted")
    else:
        assert "deletionTimestamp" in get("job", name)["metadata"]
        assert not waiting.done()
    kubectl("patch", "pod", pod_name, "--type=json", "-p", '[{"op": "remove", "path": "/metadata/finalizers"}]')
    assert await ended(waiting) == WorkerExit(None, f"its Job {name} was deleted")
    await launcher.stop(name, force)
    assert await launcher.wait(name, ORDER.artifacts) == WorkerExit(None, f"its Job {name} is gone")


async def test_jobs_and_pods_go_with_the_deployment(launcher: KubernetesLauncher) -> None:
    name = await launcher.start(ORDER)
    await asyncio.to_thread(until, lambda: pods(name))
    kubectl("delete", "cronjob", "worker")
    selected = ("jobs,pods", "-l", "app.kubernetes.io/name=worker")
    await asyncio.to_thread(until, lambda: not get(*selected)["items"])

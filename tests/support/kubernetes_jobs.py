"""Runs the Jobs of a test cluster as processes: a Job controller, a scheduler and a kubelet in one, by the documented
rules of podFailurePolicy, backoffLimit and deletion."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.kubernetes_api import Cluster, Object, now

# The kubelet kills a pod this long after SIGTERM; short, because no test depends on it but one that waits for it.
GRACE_SECONDS = 2.0


class JobController:
    """Runs each Job's pods one after the other. ``command`` stands for ``python -m charter.worker``."""

    def __init__(self, cluster: Cluster, command: Sequence[str], logs: Path) -> None:
        self._cluster = cluster
        self._command = tuple(command)
        self._logs = logs
        self._threads: dict[str, threading.Thread] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._evicted: set[str] = set()
        self._stopping = False
        self._main = threading.Thread(target=self._watch, name="job-controller")
        self._main.start()

    def close(self) -> None:
        """Kill every pod."""
        with self._cluster.changed:
            self._stopping = True
            self._cluster.changed.notify_all()
        self._main.join()
        for process in self._processes.values():
            process.kill()
        for thread in self._threads.values():
            thread.join()

    def evict(self, job: str) -> None:
        """Evict a Job's pod: a disruption, then SIGTERM."""
        self._evicted.add(job)
        self._processes[job].send_signal(signal.SIGTERM)

    def kill(self, job: str) -> None:
        """Kill a Job's pod as the kernel does when memory is short."""
        self._processes[job].kill()

    def _watch(self) -> None:
        while True:
            with self._cluster.changed:
                if self._stopping:
                    return
                for job in self._cluster.of("jobs"):
                    name = job["metadata"]["name"]
                    if name not in self._threads:
                        self._threads[name] = threading.Thread(target=self._run, args=(name,), name=f"job-{name}")
                        self._threads[name].start()
                self._cluster.changed.wait()

    def _job(self, name: str) -> Object | None:
        return next((job for job in self._cluster.of("jobs") if job["metadata"]["name"] == name), None)

    def _run(self, name: str) -> None:
        failures = pods = 0
        while (job := self._job(name)) and not self._stopping:
            pods += 1
            status = self._run_pod(job, f"{name}-0-{pods}")
            if (job := self._job(name)) is None or self._stopping:
                return
            if "deletionTimestamp" in job["metadata"]:
                self._cluster.remove("jobs", job["metadata"]["namespace"], name)
                return
            disrupted = name in self._evicted
            self._evicted.discard(name)
            if status == 0:
                self._end(job, "Complete", "CompletionsReached", "")
                return
            match action(job["spec"], status, disrupted):
                case "Ignore":
                    continue
                case "FailJob":
                    self._end(job, "Failed", "PodFailurePolicy", f"container failed with exit code {status}")
                    return
            failures += 1
            if failures > job["spec"]["backoffLimit"]:
                self._end(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
                return

    def _run_pod(self, job: Object, pod: str) -> int:
        """Run one pod to its end and give its exit status."""
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        template = job["spec"]["template"]
        (container,) = template["spec"]["containers"]
        assert container["command"][:3] == ["python", "-m", "charter.worker"]
        log = self._logs / f"{pod}.log"
        with log.open("wb") as output:
            self._processes[name] = process = subprocess.Popen(
                [*self._command, *container["command"][3:]],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "JOB_COMPLETION_INDEX": "0"},
            )
        labels = {**template["metadata"].get("labels", {}), "batch.kubernetes.io/job-name": name}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        metadata = {"name": pod, "labels": labels, "ownerReferences": [owner]}
        self._cluster.create(
            "pods", namespace, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        )
        status = self._wait(name, process)
        message = log.read_text()[-2048:] if container.get("terminationMessagePolicy") and status else ""
        self._show(namespace, pod, container, status, message)
        return status

    def _wait(self, name: str, process: "subprocess.Popen[bytes]") -> int:
        terminated = False
        while True:
            try:
                code = process.wait(0.05)
                return code if code >= 0 else 128 - code
            except subprocess.TimeoutExpired:
                job = self._job(name)
            if (job is None or "deletionTimestamp" in job["metadata"]) and not terminated:
                terminated = True
                process.terminate()
                timer = threading.Timer(GRACE_SECONDS, process.kill)
                timer.daemon = True
                timer.start()

    def _show(self, namespace: str, pod: str, container: Object, status: int, message: str) -> None:
        with self._cluster.changed:
            one = self._cluster.objects.get(("pods", namespace, pod))
            if one is None:
                return
            ended = {"exitCode": status, "reason": "Error" if status else "Completed", "finishedAt": now()}
            state: dict[str, Any] = {"terminated": {**ended, "message": message}}
            common = {"image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
            shown = {**common, "name": container["name"], "state": state}
            self._cluster.put("pods", {**one, "status": {"containerStatuses": [shown]}})

    def _end(self, job: Object, kind: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self._cluster.put("jobs", {**job, "status": {"conditions": [condition]}})


def action(spec: Object, status: int, disrupted: bool) -> str:
    """What the first matching rule of the podFailurePolicy says; Count when none matches."""
    for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
        if disrupted and any(one["type"] == "DisruptionTarget" for one in rule.get("onPodConditions", ())):
            return str(rule["action"])
        if (codes := rule.get("onExitCodes")) and (status in codes["values"]) == (codes["operator"] == "In"):
            return str(rule["action"])
    return "Count"


@contextmanager
def job_controller(cluster: Cluster, command: Sequence[str], logs: Path) -> Iterator[JobController]:
    """A controller that works inside the block."""
    controller = JobController(cluster, command, logs)
    try:
        yield controller
    finally:
        controller.close()

"""The trainer with workers as Jobs, over real gRPC and the real Kubernetes client.

The small API server on real HTTP validates what it is sent and allows what the Role of deploy/base allows. Pods are
real processes."""

import copy
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from charter.trainer import kubernetes_launcher, supervisor
from charter.trainer.kubernetes_launcher import KubernetesLauncher, job_from_template, job_name
from charter.trainer.launcher import WorkerOrder
from charter.trainer.server import TrainerConfig, build
from charter.v1 import run_pb2
from kubernetes.aio import client

from tests.deploy.manifests import BASE, render
from tests.integration.trainer.test_service import ROOT, WORKER, Client, connected
from tests.support.kubernetes_api import Cluster, Object, api_server
from tests.support.kubernetes_jobs import JobController, job_controller
from tests.support.ports import free_ports

NAMESPACE = "charter"


def base_object(kind: str, name: str) -> Object:
    (found,) = [one for one in render(BASE) if one["kind"] == kind and one["metadata"]["name"] == name]
    # Rendered once for all tests, and some change it.
    return copy.deepcopy(found)


@dataclass
class Site:
    """A cluster with the worker's template, its pods, and trainers that can be restarted."""

    cluster: Cluster
    pods: JobController
    url: str
    folder: Path

    def trainer(self, stack: ExitStack) -> Client:
        configuration = client.Configuration(host=self.url)
        launcher = KubernetesLauncher(NAMESPACE, configuration)
        config = TrainerConfig(
            f"sqlite:///{self.folder}/t.db", self.folder / "runs", "unset:1", launcher, run_pb2.ServiceAddresses()
        )
        return stack.enter_context(connected(build(config)))

    def job(self) -> Object:
        (job,) = self.cluster.of("jobs")
        return job

    @property
    def name(self) -> str:
        return str(self.job()["metadata"]["name"])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "services"))
    monkeypatch.setattr(kubernetes_launcher, "_RETRY_SECONDS", 0.05)
    with (
        api_server(base_object("Role", "trainer")["rules"]) as (cluster, url),
        job_controller(cluster, WORKER, tmp_path) as pods,
    ):
        cluster.create("cronjobs", NAMESPACE, base_object("CronJob", "worker"))
        yield Site(cluster, pods, url, tmp_path)


@pytest.fixture
def trainer(site: Site) -> Iterator[Client]:
    with ExitStack() as stack:
        yield site.trainer(stack)


def test_a_run_is_a_job_that_belongs_to_its_template(site: Site, trainer: Client) -> None:
    run = trainer.create("finishes")
    ended = trainer.end(run.id)
    assert (ended.state, ended.attempts, ended.error) == (run_pb2.RUN_STATE_SUCCEEDED, 1, "")
    job = site.job()
    (owner,) = job["metadata"]["ownerReferences"]
    (template,) = site.cluster.of("cronjobs")
    assert owner == {"apiVersion": "batch/v1", "kind": "CronJob", "name": "worker", "uid": template["metadata"]["uid"]}
    assert job["metadata"]["annotations"] == {"charter/run": run.id, "charter/attempt": "1"}
    # Deleting the deployment takes Jobs and pods with it.
    site.cluster.remove("cronjobs", NAMESPACE, "worker")
    assert not site.cluster.of("jobs")
    assert not site.cluster.of("pods")


def test_an_eviction_is_no_failure(site: Site, trainer: Client) -> None:
    run = trainer.create("goes-on")
    trainer.first_report(run.id)
    site.pods.evict(site.name)
    ended = trainer.end(run.id)
    assert (ended.state, ended.attempts) == (run_pb2.RUN_STATE_SUCCEEDED, 1)


def test_a_killed_pod_is_started_again(site: Site, trainer: Client) -> None:
    run = trainer.create("goes-on")
    trainer.first_report(run.id)
    site.pods.kill(site.name)
    ended = trainer.end(run.id)
    assert (ended.state, ended.attempts) == (run_pb2.RUN_STATE_SUCCEEDED, 1)


def test_a_worker_that_always_fails_ends_the_run_with_its_last_words(site: Site, trainer: Client) -> None:
    with site.cluster.changed:
        template = site.cluster.objects["cronjobs", NAMESPACE, "worker"]
        template["spec"]["jobTemplate"]["spec"]["backoffLimit"] = 1
    ended = trainer.end(trainer.create("fails-always").id)
    assert ended.state == run_pb2.RUN_STATE_FAILED
    assert "BackoffLimitExceeded" in ended.error
    assert "exit status 1" in ended.error
    assert "no room on the moon" in ended.error
    assert len(site.cluster.of("pods")) == 2


def test_status_3_is_not_tried_again_and_a_resume_is_a_new_job(site: Site, trainer: Client) -> None:
    run = trainer.create("crashes-once")
    failed = trainer.end(run.id)
    assert failed.state == run_pb2.RUN_STATE_FAILED
    assert "PodFailurePolicy" in failed.error
    assert len(site.cluster.of("pods")) == 1
    assert trainer.resume(run.id).attempts == 2
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_SUCCEEDED
    names = sorted(job["metadata"]["name"] for job in site.cluster.of("jobs"))
    assert names == [f"{run.id}-1", f"{run.id}-2"]


def test_cancel_reaches_a_worker_that_listens(site: Site, trainer: Client) -> None:
    run = trainer.create("steps-until-cancelled")
    trainer.first_report(run.id)
    trainer.cancel(run.id)
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_CANCELLED


def test_cancel_deletes_the_job_of_one_that_does_not(
    site: Site, trainer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "COOPERATE_SECONDS", 0.0)
    run = trainer.create("stubborn")
    trainer.first_report(run.id)
    trainer.cancel(run.id)
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_CANCELLED
    # In the foreground: the run has ended only after its pod.
    assert not site.cluster.of("jobs")
    assert not site.cluster.of("pods")


def test_a_new_trainer_takes_up_a_running_job(site: Site) -> None:
    with ExitStack() as stack:
        run = (first := site.trainer(stack)).create("goes-on")
        first.first_report(run.id)
    with ExitStack() as stack:
        second = site.trainer(stack)
        assert second.get(run.id).state == run_pb2.RUN_STATE_RUNNING


def test_a_new_trainer_finds_a_job_that_the_one_before_did_not_note(site: Site) -> None:
    with ExitStack() as stack:
        run = (first := site.trainer(stack)).create("idle")
        first.first_report(run.id)
    # As if it had died before it could.
    with closing(sqlite3.connect(site.folder / "t.db")) as database, database:
        assert database.execute("UPDATE runs SET worker = ''").rowcount == 1
    with ExitStack() as stack:
        second = site.trainer(stack)
        assert second.get(run.id).state == run_pb2.RUN_STATE_RUNNING
        condition = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
        site.cluster.put("jobs", {**site.job(), "status": {"conditions": [condition]}})
        assert "DeadlineExceeded: too long" in second.end(run.id).error


@pytest.mark.parametrize("meanwhile", ["ended", "deleted"])
def test_a_new_trainer_learns_what_happened_while_there_was_none(site: Site, meanwhile: str) -> None:
    with ExitStack() as stack:
        run = (first := site.trainer(stack)).create("idle")
        first.first_report(run.id)
    job = site.job()
    if meanwhile == "ended":
        condition = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
        site.cluster.put("jobs", {**job, "status": {"conditions": [condition]}})
    else:
        site.cluster.remove("jobs", NAMESPACE, job["metadata"]["name"])
    with ExitStack() as stack:
        ended = site.trainer(stack).end(run.id)
    assert ended.state == run_pb2.RUN_STATE_FAILED
    assert ("DeadlineExceeded: too long" if meanwhile == "ended" else "is gone") in ended.error


@pytest.mark.parametrize("fault", ["dropped", "expired", "away"])
def test_the_end_is_seen_through_faults_of_the_api_server(site: Site, trainer: Client, fault: str) -> None:
    run = trainer.create("goes-on")
    trainer.first_report(run.id)
    cluster = site.cluster
    if fault == "expired":
        # A watch that begins again from what it knows is too old; only a new list helps.
        cluster.compacted = cluster.version
    cluster.away = fault == "away"
    cluster.drop_connections()
    site.pods.kill(site.name)
    trainer_events = trainer.watch(run.id)
    next(one for one in trainer_events if one.event.phase == run_pb2.PHASE_REPORTING)
    cluster.away = False
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_SUCCEEDED


def test_the_role_is_enough_and_no_more(site: Site, trainer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "COOPERATE_SECONDS", 0.0)
    trainer.end(trainer.create("crashes-once").id)
    run = trainer.create("stubborn")
    trainer.first_report(run.id)
    trainer.cancel(run.id)
    trainer.end(run.id)
    allowed = {
        (group, resource, verb)
        for rule in site.cluster.rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert site.cluster.used == allowed


def forbid(cluster: Cluster) -> None:
    cluster.rules.clear()


def lose_template(cluster: Cluster) -> None:
    cluster.remove("cronjobs", NAMESPACE, "worker")


def break_template(cluster: Cluster) -> None:
    template = cluster.objects["cronjobs", NAMESPACE, "worker"]
    template["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["name"] = "other"


def go_away(cluster: Cluster) -> None:
    cluster.away = True


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (forbid, "cannot get cronjobs worker. Apply deploy/base/trainer.yaml"),
        (lose_template, 'cronjobs "worker" not found. Apply deploy/base/worker.yaml'),
        (break_template, "has no container `worker`"),
        (go_away, "the API server is away"),
    ],
)
def test_a_job_that_cannot_be_created_fails_the_run_and_says_why(
    site: Site, trainer: Client, fault: Callable[[Cluster], None], words: str
) -> None:
    with site.cluster.changed:
        fault(site.cluster)
    run = trainer.create("finishes")
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert words in run.error


def order(run_id: str = "a-run-20260101-000000-abcd", attempt: int = 1) -> WorkerOrder:
    return WorkerOrder(run_id, attempt, Path("/runs/x"), "trainer:50052")


def template(**job: Any) -> Object:
    one = base_object("CronJob", "worker")
    one["metadata"]["uid"] = "1"
    one["spec"]["jobTemplate"]["metadata"] = job.pop("metadata", {})
    one["spec"]["jobTemplate"]["spec"] |= job
    return one


def test_queue_and_priority_of_the_template_are_passed_on() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "research", "kueue.x-k8s.io/priority-class": "high"}
    source = template(metadata={"labels": labels, "annotations": {"team": "a"}})
    source["spec"]["jobTemplate"]["spec"]["template"]["spec"]["priorityClassName"] = "training"
    job = job_from_template(source, order())
    assert job["metadata"]["labels"] == labels
    assert job["metadata"]["annotations"]["team"] == "a"
    assert job["spec"]["template"]["spec"]["priorityClassName"] == "training"


def test_names_fit_for_the_longest_run() -> None:
    longest = f"{'x' * 62}-20260101-000000-abcd"
    name = job_name(order(longest, 999))
    # The pod's host name is the Job's with its index.
    assert len(f"{name}-99999") <= 63
    assert name.endswith("-20260101-000000-abcd-999")


def command(source: Object) -> list[str]:
    (container,) = job_from_template(source, order())["spec"]["template"]["spec"]["containers"]
    result: list[str] = container["command"]
    return result


def test_one_process_is_python_and_more_are_torchrun() -> None:
    assert command(template())[:3] == ["python", "-m", "charter.worker"]
    several = command(template(completions=3, parallelism=3))
    assert several[:3] == ["python", "-m", "charter.worker.training.torchrun"]
    assert "--nnodes=3" in several
    assert "--node-rank=$(JOB_COMPLETION_INDEX)" in several
    assert "--master-addr=a-run-20260101-000000-abcd-1-0.worker" in several
    source = template()
    spec = source["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    spec["containers"][0]["resources"]["limits"] = {"nvidia.com/gpu": "4"}
    assert "--nproc-per-node=4" in command(source)


def test_pods_of_one_run_meet_at_index_0_and_end_as_their_workers() -> None:
    """The very command of two pods, with this machine for the name of the first and a free port."""
    (port,) = free_ports(1)
    processes = []
    for index in ("0", "1"):
        pod = [part.replace("$(JOB_COMPLETION_INDEX)", index) for part in command(template(completions=2))]
        pod = [f"--master-port={port}" if part.startswith("--master-port") else part for part in pod]
        pod = ["--master-addr=127.0.0.1" if part.startswith("--master-addr") else part for part in pod]
        worker = str(Path(__file__).parents[2] / "support" / "torchrun_worker.py")
        pod = [sys.executable, *pod[1 : pod.index("charter.worker") - 1], worker]
        processes.append(subprocess.Popen(pod, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = sorted(process.communicate(timeout=500) for process in processes)
    assert [output for output, _ in said] == ["rank 0 of 2: 3\n", "rank 1 of 2: 3\n"]
    # Behind the last words of the worker come none of torchrun's.
    assert [errors.splitlines()[-1] for _, errors in said] == ["stopped", "stopped"]
    assert [process.returncode for process in processes] == [3, 3]


def test_outside_a_cluster_the_start_option_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(kubernetes_launcher.LaunchError, match="in a pod"):
        KubernetesLauncher.in_cluster()

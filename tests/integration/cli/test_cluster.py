"""`charter --context`: real services behind port-forwards of a small API server, and what `charter doctor` finds."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from charter.cli.calls import channel_to
from charter.cli.cluster import access
from charter.cli.cluster.access import Cluster
from charter.cli.cluster.remote import remote
from charter.cli.runs.progress import watch
from charter.cli.services import SERVICES, endpoint
from charter.rpc.channel import QUICK
from charter.v1 import trainer_pb2, trainer_pb2_grpc

from tests.integration.cli import test_runs
from tests.integration.cli.test_runs import CONSTITUTION, as_json, charter
from tests.support import kubernetes_api
from tests.support.kubernetes_api import Object, api_server

services = test_runs.services
write_spec = test_runs.write_spec

# Fields of the answer to /version.
VERSION = ("gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform")
# What a person needs (docs/kubernetes.md).
RIGHTS: list[Object] = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/portforward", "secrets"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["persistentvolumeclaims", "nodes"], "verbs": ["list"]},
    {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["list"]},
    {"apiGroups": ["batch"], "resources": ["cronjobs"], "verbs": ["get"], "resourceNames": ["worker"]},
]
ON = ("--context", "there", "-n", "charter")


def pod(service: str, ready: bool = True) -> Object:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    labels = {"app.kubernetes.io/name": service, "app.kubernetes.io/part-of": "charter"}
    metadata = {"name": f"{service}-0", "namespace": "charter", "labels": labels}
    container: Object = {"name": service, "image": "charter:1"}
    spec = {"containers": [container]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {"conditions": [condition]},
    }


@pytest.fixture
def cluster(services: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kubernetes_api.Cluster]:
    """A cluster whose pods are the services of the fixture, in the kubeconfig as context `there`."""
    with api_server([*RIGHTS]) as (found, url):
        for name in SERVICES:
            host, _, port = os.environ[f"CHARTER_{name.upper()}_ADDRESS"].rpartition(":")
            found.ports[f"{name}-0", access.GRPC_PORT] = (host, int(port))
            found.put("pods", pod(name))
        found.documents["/version/"] = {
            **dict.fromkeys(VERSION, "x"),
            "major": "1",
            "minor": "36+",
            "gitVersion": "v1.36.1",
        }
        found.documents["/apis/"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "current-context": "there",
                    "contexts": [{"name": "there", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": url}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                }
            )
        )
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
        monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "laptop"))
        yield found


def test_a_run_takes_its_files_there_and_brings_its_results_back(
    cluster: kubernetes_api.Cluster, write_spec: Any, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "What is a tide?"}\n{"prompt": "What is a bay?"}\n')
    result = charter(*ON, "run", write_spec("finishes"))
    assert result.exit_code == 0, result.output
    assert "PPO  3/3" in result.stdout
    assert "Report and model are in" in result.stdout
    run = as_json(*ON, "runs", "show", "finishes")
    (train,) = run["spec"]["prompts"]["train"]
    assert Path(train).read_text() == (tmp_path / "t.jsonl").read_text()
    assert Path(train).is_relative_to(Path(run["artifacts"]).parent / "inputs")
    assert Path(run["spec"]["judge"]["constitution"]).read_text() == CONSTITUTION.read_text()
    here = tmp_path / "laptop" / "runs" / run["id"]
    assert (here / "spec.json").read_bytes() == (Path(run["artifacts"]) / "spec.json").read_bytes()
    # The laptop's own addresses are those of before.
    assert not remote()


def test_progress_goes_on_where_the_connection_broke(cluster: kubernetes_api.Cluster, write_spec: Any) -> None:
    started = as_json(*ON, "run", write_spec("steps-until-cancelled"), "--detach")
    with access.connected(Cluster.open("there", "charter")), channel_to("trainer") as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        seen = []
        for response in watch(stub, started["id"]):
            if response.HasField("event"):
                seen.append(response.event.sequence)
                if len(seen) in (3, 6):
                    cluster.drop_connections()
                if len(seen) == 9:
                    stub.CancelRun(
                        trainer_pb2.CancelRunRequest(run_id=started["id"]), timeout=QUICK, wait_for_ready=True
                    )
    assert seen == list(range(1, len(seen) + 1)), "none lost, none twice"


def test_a_pod_that_is_replaced_is_found_again(cluster: kubernetes_api.Cluster) -> None:
    with access.connected(Cluster.open("there", "charter")), channel_to("trainer") as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        stub.ListRuns(trainer_pb2.ListRunsRequest(), timeout=QUICK)
        moved = pod("trainer")
        moved["metadata"]["name"] = "trainer-1"
        cluster.ports["trainer-1", access.GRPC_PORT] = cluster.ports.pop(("trainer-0", access.GRPC_PORT))
        cluster.remove("pods", "charter", "trainer-0")
        cluster.put("pods", moved)
        cluster.drop_connections()
        stub.ListRuns(trainer_pb2.ListRunsRequest(), timeout=QUICK, wait_for_ready=True)


def test_nothing_of_it_is_left_behind(cluster: kubernetes_api.Cluster) -> None:
    """A thread that is still in a call of the Kubernetes client when Python ends aborts the process (SIGABRT)."""
    before = {*threading.enumerate()}
    with ThreadPoolExecutor(1) as leaver, contextlib.ExitStack() as stack:
        stack.enter_context(access.connected(Cluster.open("there", "charter")))
        with channel_to("trainer") as channel:
            trainer_pb2_grpc.TrainerServiceStub(channel).ListRuns(trainer_pb2.ListRunsRequest(), timeout=QUICK)
            # Meanwhile the API server answers nobody.
            with cluster.changed:
                for name in SERVICES:
                    host, _, port = endpoint(name).main.rpartition(":")
                    stack.callback(socket.create_connection((host, int(port))).close)
                left = leaver.submit(stack.close)
            left.result(60)
        # Of this test's services and API server, and the client's own, which calls nothing compiled.
        others = (
            "process_request_thread",
            "_to_client",
            "Kubernetes port forward proxy",
            "ThreadPoolExecutor",
            "asyncio",
        )
        found = [one.name for one in {*threading.enumerate()} - before]
        assert not [name for name in found if not any(other in name for other in others)]


def test_a_local_model_folder_is_refused(cluster: kubernetes_api.Cluster, write_spec: Any, tmp_path: Path) -> None:
    spec = Path(write_spec("finishes"))
    spec.write_text(spec.read_text().replace("model: fake-policy, engine: fake", "model: ./mine, engine: transformers"))
    result = charter(*ON, "run", str(spec))
    assert result.exit_code == 1
    assert "policy.model: `./mine` is a folder here; name one there" in result.stderr


def test_an_unknown_context_is_named(cluster: kubernetes_api.Cluster) -> None:
    result = charter("--context", "nowhere", "runs", "list")
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
    assert "KUBECONFIG" in result.stderr


def test_the_addresses_stand_for_pods(cluster: kubernetes_api.Cluster) -> None:
    with access.connected(Cluster.open("there", "charter")):
        assert remote()
        assert endpoint("judge").main not in {f"{host}:{port}" for host, port in cluster.ports.values()}
        shown = as_json("status")
        assert {one["health"] for one in shown.values()} == {"SERVING"}

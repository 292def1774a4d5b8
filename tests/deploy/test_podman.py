"""Real containers from the rendered manifests: podman runs each service's pod, and its declared probes are called.

`make test-containers` builds the image and sets CHARTER_TEST_CONTAINERS; docs/kubernetes.md says what podman needs.
"""

import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import (
    ROOT,
    SERVICES,
    Manifest,
    arguments,
    containers,
    of_kind,
    pod_template,
    render,
    workloads,
)

pytestmark = pytest.mark.skipif(
    not os.environ.get("CHARTER_TEST_CONTAINERS"), reason="`make test-containers` builds the image and runs these"
)

IMAGE = os.environ.get("CHARTER_TEST_IMAGE", "localhost/charter-worker:0.1.0")
START_SECONDS = 400.0
# Asks like the kubelet, from inside: the pod has no network, so that no port of this machine is used.
PROBE = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}"))
response = stub.Check(health_pb2.HealthCheckRequest(service=sys.argv[2]), timeout=60)
print(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
"""


def podman(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    result = subprocess.run(["podman", *arguments], capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr
    return result


def pod_of(objects: tuple[Manifest, ...], name: str) -> Manifest:
    """A workload's pod as podman takes it: without a controller, gRPC probes and Kubernetes' API server."""
    (workload,) = [one for one in workloads(objects) if one["metadata"]["name"] == name]
    spec = copy.deepcopy(pod_template(workload)["spec"])
    for claim in workload["spec"].get("volumeClaimTemplates", ()):
        volume = claim["metadata"]["name"]
        spec["volumes"].append({"name": volume, "persistentVolumeClaim": {"claimName": volume}})
    for volume in spec["volumes"]:
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            claim["claimName"] = f"charter-test-{name}-{claim['claimName']}"
    (container,) = spec["containers"]
    container |= {"image": IMAGE, "imagePullPolicy": "Never"}
    # podman does not fill in $(NAME) from a ConfigMap.
    container["args"] = [one for one in arguments(objects, container) if one != "--launcher=kubernetes"]
    for field in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
        del container[field]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"charter-test-{name}"}, "spec": spec}


@contextmanager
def playing(objects: tuple[Manifest, ...], name: str, folder: Path, model: Path) -> Iterator[str]:
    """Run a service's pod inside the block; gives the name of its container."""
    pod = pod_of(objects, name)
    volumes = [
        one["persistentVolumeClaim"]["claimName"] for one in pod["spec"]["volumes"] if "persistentVolumeClaim" in one
    ]
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump_all([*of_kind(objects, "ConfigMap"), pod]))
    try:
        for volume in volumes:
            podman("volume", "create", volume)
            place = Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", volume).stdout.strip())
            if volume.endswith("-models"):
                shutil.copytree(model, place / "smollm2-135m-instruct")
            # What fsGroup does in a cluster.
            for path in (place, *place.rglob("*")):
                os.chown(path, 10001, 10001)
        podman("play", "kube", "--network", "none", str(file))
        yield f"charter-test-{name}-{name}"
    finally:
        podman("pod", "rm", "--force", "--time", "1", f"charter-test-{name}", check=False)
        for volume in volumes:
            podman("volume", "rm", "--force", volume, check=False)


def ask(container: str, probe: Manifest) -> str:
    port, service = str(probe["grpc"]["port"]), probe["grpc"].get("service", "")
    return podman("exec", container, "python", "-c", PROBE, port, service, check=False).stdout.strip()


@pytest.mark.parametrize("name", SERVICES)
def test_the_container_serves_and_ends_cleanly(name: str, tmp_path: Path, tiny_model: Path) -> None:
    objects = render(ROOT / "deploy/overlays/local")
    (declared,) = [container for owner, _, container in containers(objects) if owner == name]
    with playing(objects, name, tmp_path, tiny_model) as container:
        deadline = time.monotonic() + START_SECONDS
        while (status := ask(container, declared["startupProbe"])) != "SERVING":
            logs = podman("logs", container, check=False)
            assert "Up" in podman("ps", "--filter", f"name={container}").stdout, logs.stderr[-4000:]
            assert time.monotonic() < deadline, f"{status}: {logs.stderr[-4000:]}"
            time.sleep(1)
        assert ask(container, declared["livenessProbe"]) == "SERVING"
        assert ask(container, declared["readinessProbe"]) == "SERVING"
        (found,) = json.loads(podman("inspect", container).stdout)
        assert found["Config"]["User"].startswith("10001")
        assert found["HostConfig"]["ReadonlyRootfs"] is True
        assert not found["EffectiveCaps"]
        assert found["HostConfig"]["Memory"] > 0
        assert podman("exec", container, "touch", "/opt/x", check=False).returncode != 0
        podman("stop", "--time", str(60), container)
        assert json.loads(podman("inspect", container).stdout)[0]["State"]["ExitCode"] == 0

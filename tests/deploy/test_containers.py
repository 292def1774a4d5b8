"""Each container's command is one that the CLI takes, and its process answers the probes that it declares."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import typer
from charter.cli.main import app
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.manifests import (
    BASE,
    OVERLAYS,
    ROOT,
    SERVICES,
    Manifest,
    arguments,
    config_map,
    containers,
    environment,
    image_environment,
    of_kind,
    render,
)
from tests.support.ports import free_ports

LOCAL = ROOT / "deploy" / "overlays" / "local"
PACKAGE = str(ROOT / "services")
# Generous, because a test machine may be busy: what is tested is which ports and names answer, not how fast.
START_SECONDS = 480.0
CALL_SECONDS = 60.0


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_the_cli_takes_every_command(folder: Path) -> None:
    objects = render(folder)
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    for name, _, container in containers(objects):
        if name not in SERVICES:
            continue
        assert "command" not in container, "the image's entrypoint is `charter`"
        first, service, *options = arguments(objects, container)
        assert (first, service) == ("serve", name)
        # Refuses unknown options, missing ones and values of the wrong type.
        context = serve.commands[service].make_context(service, options)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert context.params["host"] == "0.0.0.0", "the kubelet and other pods must reach it"
        assert context.params["port"] == ports["grpc"]
        assert context.params["metrics_port"] == ports["metrics"]
        assert context.params.get("control_port") == ports.get("control")
        assert context.params["health_port"] == ports["health"]


def test_the_base_refers_only_to_what_an_overlay_gives() -> None:
    """$(NAME) in the base's arguments is filled from the ConfigMap `models`: each overlay has exactly those names."""
    wanted = {
        argument.partition("$(")[2].rstrip(")")
        for _, _, container in containers(render(BASE))
        for argument in container.get("args", ())
        if "$(" in argument
    }
    for folder in OVERLAYS:
        (name,) = [
            one["metadata"]["name"]
            for one in of_kind(render(folder), "ConfigMap")
            if one["metadata"]["name"].startswith("models")
        ]
        assert set(config_map(render(folder), name)) == wanted


@dataclass(frozen=True)
class Process:
    """A container's command as a process of this machine."""

    popen: subprocess.Popen[bytes]
    # Declared port -> the port that stands for it here.
    ports: dict[int, int]
    log: Path

    def probe(self, probe: Manifest) -> str:
        """What a gRPC probe of the container hears: a serving status, or the status code of a failed call."""
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[probe['grpc']['port']]}") as channel:
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            try:
                response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                return str(error.code().name)  # type: ignore[attr-defined]
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def wait_until_started(self, probe: Manifest) -> None:
        """Call the startup probe as the kubelet does, until it succeeds or the process ends."""
        deadline = time.monotonic() + START_SECONDS
        while (status := self.probe(probe)) != "SERVING":
            assert self.popen.poll() is None, f"it ended:\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"{status} after {START_SECONDS} s:\n{self.log.read_text()[-4000:]}"
            time.sleep(0.2)


@contextmanager
def started(objects: tuple[Manifest, ...], name: str, root: Path, model: Path) -> Iterator[tuple[Process, Manifest]]:
    """Run a container's arguments and environment, its mounts below ``root``, its ports replaced by free ones."""
    ((spec, container),) = [(spec, one) for owner, spec, one in containers(objects) if owner == name]
    config_maps = {volume["name"]: volume["configMap"] for volume in spec["volumes"] if "configMap" in volume}
    folders = {}
    for mount in container["volumeMounts"]:
        folder = root / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        folders[mount["mountPath"]] = str(folder)
        if mount["name"] in config_maps:
            for file, text in config_map(objects, config_maps[mount["name"]]["name"]).items():
                (folder / file).write_text(text)
    (root / "models").mkdir(exist_ok=True)
    (root / "models" / "smollm2-135m-instruct").symlink_to(model)
    declared = [port["containerPort"] for port in container["ports"]]
    ports = dict(zip(declared, free_ports(len(declared)), strict=True))

    def here(text: str) -> str:
        """A value of the manifest with its mount or port replaced."""
        for mounted, folder in folders.items():
            if text == mounted or text.startswith(f"{mounted}/"):
                return folder + text[len(mounted) :]
        return str(ports[int(text)]) if text.isdigit() and int(text) in ports else text

    command = [str(Path(sys.executable).parent / "charter")]
    for argument in arguments(objects, container):
        # Outside a pod there is no API server: the launcher has its own tests.
        if argument == "--launcher=kubernetes":
            continue
        option, equals, value = argument.partition("=")
        command.append(option + equals + ("127.0.0.1" if option == "--host" else here(value)))
    variables = {**image_environment(), **environment(objects, container)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = root / "log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folders.get(image_workdir(), root),
            # The package lies here, not where the image has it.
            env={**{key: here(value) for key, value in variables.items()}, "PATH": path, "PYTHONPATH": PACKAGE},
        )
    try:
        yield Process(popen, ports, log), container
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait()


def image_workdir() -> str:
    """The WORKDIR of the Dockerfile's last stage."""
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    return [line.removeprefix("WORKDIR ") for line in lines if line.startswith("WORKDIR ")][-1]


@pytest.mark.parametrize("name", SERVICES)
def test_the_process_answers_its_probes(name: str, tmp_path: Path, tiny_model: Path) -> None:
    with started(render(LOCAL), name, tmp_path, tiny_model) as (process, container):
        process.wait_until_started(container["startupProbe"])
        assert process.probe(container["livenessProbe"]) == "SERVING"
        assert process.probe(container["readinessProbe"]) == "SERVING"
        stranger = {"grpc": {**container["readinessProbe"]["grpc"], "service": "charter.v1.NoService"}}
        assert process.probe(stranger) == "NOT_FOUND"
        named = {port["name"]: port["containerPort"] for port in container["ports"]}
        metrics = f"http://127.0.0.1:{process.ports[named['metrics']]}/metrics"
        with urllib.request.urlopen(metrics, timeout=CALL_SECONDS) as page:
            assert f'charter_serving{{service="{name}"}} 1.0' in page.read().decode()
        for port in {"grpc", "control"} & named.keys():
            assert process.probe({"grpc": {"port": named[port]}}) == "SERVING"
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(60) == 0, process.log.read_text()[-4000:]

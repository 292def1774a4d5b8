"""Replicas as real processes that tests kill, stop and start again on the same ports."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from urllib.request import urlopen

import grpc
import psutil  # type: ignore[import-untyped]
from charter.rpc.channel import connect
from charter.v1 import weights_pb2, weights_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.ports import free_ports

SOURCE = Path(__file__).resolve().parents[2] / "services"
# A start under load takes seconds; a test that waits longer than this hangs.
START_SECONDS = 300.0


class Process:
    """`charter serve ...` on ports of its own; started at once, killed at the end of the block."""

    def __init__(self, folder: Path, service: str, *arguments: str, control: bool = True) -> None:
        main, control_port, metrics_port = free_ports(3)
        self.main, self.control, self.metrics = (f"127.0.0.1:{port}" for port in (main, control_port, metrics_port))
        self._command = [sys.executable, "-m", "charter.cli.main", "serve", service, *arguments, f"--port={main}"]
        self._command += [f"--metrics-port={metrics_port}", *([f"--control-port={control_port}"] if control else [])]
        self._environment = {**os.environ, "PYTHONPATH": str(SOURCE), "CHARTER_HOME": str(folder / f"home-{main}")}
        self._health_name = f"charter.v1.{service.capitalize()}Service"
        self.start()

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()
        self.kill()

    def start(self) -> None:
        """Start it; ``wait_serving`` tells when it serves."""
        self._process = subprocess.Popen(self._command, env=self._environment)

    def wait_serving(self) -> None:
        """Return when it answers and is SERVING, through the channel's own waiting for a server."""
        with connect(self.main) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=self._health_name)
            watch = stub.Watch(request, timeout=START_SECONDS, wait_for_ready=True)
            for response in watch:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    watch.cancel()
                    return

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self._process.kill()
        self._process.wait()

    def descendants(self) -> list[psutil.Process]:
        """The processes that it started, and those that these started."""
        found: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        return found

    def replace(self) -> int:
        """End it as a rolling update does and start it again; the exit status of the old process."""
        self._process.terminate()
        status = self._process.wait()
        self.start()
        return status

    def suspend(self) -> None:
        """Make it hang: its sockets stay open, nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End ``suspend``."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)

    def metric(self, name: str) -> float:
        """A number of its metrics page, the first of that name."""
        page = urlopen(f"http://{self.metrics}/metrics").read().decode()
        return float(next(line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith(name)))

    def wait_metric(self, name: str, least: float) -> None:
        """Return when a number has grown to ``least``."""
        while self.metric(name) < least:
            pass

    def version(self) -> int:
        """Weight version that it serves."""
        with connect(self.control) as channel:
            stub = weights_pb2_grpc.WeightServiceStub(channel)
            return stub.GetWeightVersion(weights_pb2.GetWeightVersionRequest(), timeout=10).model.weight_version

    def health(self) -> str:
        """SERVING or NOT_SERVING, or UNREACHABLE."""
        with connect(self.main) as channel:
            request = health_pb2.HealthCheckRequest(service=self._health_name)
            try:
                status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status
            except grpc.RpcError:
                return "UNREACHABLE"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))

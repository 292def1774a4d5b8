"""A cluster as if it were here: `charter --context CTX -n NS COMMAND` forwards a local port to each service.

The forwards go through the Kubernetes API server, so neither kubectl nor a way into the cluster's network is needed.
"""

import base64
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import websocket
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward
from urllib3.exceptions import HTTPError

from charter.cli.cluster.remote import VARIABLE
from charter.cli.services import SERVICES
from charter.rpc import tls
from charter.rpc.channel import QUICK

# Ports of every service's container (deploy/base).
GRPC_PORT = 50051
# Secret with a certificate for people (deploy/components/mtls).
CLIENT_SECRET = "client-tls"

_CHUNK_BYTES = 256 * 1024


class ClusterError(RuntimeError):
    """The cluster cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A namespace of a cluster."""

    context: str
    namespace: str
    api: client.ApiClient

    @classmethod
    def open(cls, context: str, namespace: str) -> "Cluster":
        """By a context of the kubeconfig (empty: its current one). Raises ``ClusterError``."""
        try:
            return cls(context, namespace, config.new_client_from_config(context=context or None))
        except config.ConfigException as error:
            reason = str(error).rstrip(". ")
            raise ClusterError(f"{reason}. Set KUBECONFIG, or choose a context that is in it") from error

    def ready_pod(self, service: str) -> str:
        """Name of a pod that can be called. Raises ``ClusterError``."""
        try:
            pods = client.CoreV1Api(self.api).list_namespaced_pod(
                self.namespace, label_selector=f"app.kubernetes.io/name={service}", _request_timeout=QUICK
            )
        except (ApiException, HTTPError) as error:
            reason = f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)
            raise ClusterError(
                f"cannot list pods of namespace {self.namespace}: {reason}; see `charter doctor`"
            ) from error
        for pod in pods.items:
            conditions = (pod.status.conditions if pod.status else None) or []
            if any(one.type == "Ready" and one.status == "True" for one in conditions):
                return str(pod.metadata.name)
        raise ClusterError(
            f"no pod of the {service} service is ready in namespace {self.namespace}; see `charter doctor`"
        )

    def open_port(self, service: str) -> socket.socket:
        """A connection to the gRPC port of one of a service's pods. Raises ``ClusterError``."""
        pod = self.ready_pod(service)
        # The call changes its ApiClient for a moment, so that threads must not share one.
        own = client.ApiClient(self.api.configuration)
        # The call has no time-out of its own, and whoever leaves ``connected`` waits for it.
        websocket.setdefaulttimeout(QUICK)
        try:
            forward = portforward(
                client.CoreV1Api(own).connect_get_namespaced_pod_portforward,
                pod,
                self.namespace,
                ports=str(GRPC_PORT),
            )
        except ApiException as error:
            raise ClusterError(f"cannot forward a port to pod {pod}: {error.reason}") from error
        # An open one may be silent for as long as it likes.
        forward.websocket.settimeout(None)
        opened: socket.socket = forward.socket(GRPC_PORT)
        return opened


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Inside, every command finds the cluster's services: a local port stands for each, whatever happens to its pods.

    Raises ``ClusterError`` when the cluster cannot be used at all.
    """
    with contextlib.ExitStack() as stack:
        forwards = stack.enter_context(contextlib.closing(_Forwards(cluster)))
        variables = {VARIABLE: cluster.namespace}
        if folder := _certificates(cluster, stack):
            variables[tls.VARIABLE] = folder
        for service in SERVICES:
            variables[f"CHARTER_{service.upper()}_ADDRESS"] = forwards.listen(service)
        stack.callback(_restore, {name: os.environ.get(name) for name in variables})
        os.environ.update(variables)
        yield


def _restore(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _certificates(cluster: Cluster, stack: contextlib.ExitStack) -> str:
    """Folder with the certificate for people; empty when the cluster has none, or the user brings one."""
    if os.environ.get(tls.VARIABLE):
        return ""
    try:
        secret = client.CoreV1Api(cluster.api).read_namespaced_secret(CLIENT_SECRET, cluster.namespace)
    except ApiException as error:
        # Without the component mtls there is none; who may not read it sets CHARTER_TLS.
        if error.status in (403, 404):
            return ""
        raise ClusterError(f"cannot read the Secret {CLIENT_SECRET}: {error.status} {error.reason}") from error
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="charter-tls-")))
    for name, value in secret.data.items():
        content = value if isinstance(value, bytes) else value.encode()
        (folder / name).write_bytes(base64.b64decode(content))
    return str(folder)


class _Forwards:
    """Local ports that stand for services, and the threads that carry their connections. ``close`` at the end.

    None of these threads may be left when the interpreter ends: Python would unwind it from wherever it is, and in the
    middle of a call of the Kubernetes client that is compiled code (pydantic's), which aborts the process.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._closed = False
        self._addresses: list[tuple[str, int]] = []
        # Both ends of every connection that is forwarded.
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def listen(self, service: str) -> str:
        """A new address, host:port, for a service."""
        listener = socket.create_server(("127.0.0.1", 0))
        host, port = listener.getsockname()
        self._addresses.append((host, port))
        self._start(self._accept, service, listener)
        return f"{host}:{port}"

    def close(self) -> None:
        """End all connections. Returns when no thread is left, so at the latest when a call under way has timed out."""
        with self._lock:
            self._closed = True
            for one in self._ends:
                _shut(one)
        for address in self._addresses:
            # On some systems nothing else wakes who waits for a connection.
            with contextlib.suppress(OSError):
                socket.create_connection(address).close()
        for thread in self._threads:
            thread.join()

    def _start(self, target: Callable[[str, socket.socket], None], service: str, owned: socket.socket) -> bool:
        """Whether a thread was started, which closes its socket in the end; after ``close`` none is."""

        def run() -> None:
            with owned:
                target(service, owned)

        with self._lock:
            if self._closed:
                owned.close()
                return False
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(threading.Thread(target=run, name=f"forward {service}", daemon=True))
            self._threads[-1].start()
        return True

    @contextmanager
    def _ended_by_close(self, end: socket.socket) -> Iterator[None]:
        with self._lock:
            self._ends.add(end)
            if self._closed:
                _shut(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.discard(end)

    def _accept(self, service: str, listener: socket.socket) -> None:
        """Forward each connection to a pod that is ready at that moment; gRPC makes a lost one again."""
        while self._start(self._forward, service, listener.accept()[0]):
            pass

    def _forward(self, service: str, here: socket.socket) -> None:
        try:
            there = self._cluster.open_port(service)
        except ClusterError:
            # The caller sees a closed connection, tries again, and words its own error.
            return
        with contextlib.closing(there), self._ended_by_close(here), self._ended_by_close(there):
            back = threading.Thread(target=_copy, args=(there, here), daemon=True)
            back.start()
            _copy(here, there)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until either side is closed, then close both ways, so that the other direction ends too."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            target.sendall(chunk)
    _shut(source)
    _shut(target)


def _shut(end: socket.socket) -> None:
    """Wake whoever waits at this end or the other."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

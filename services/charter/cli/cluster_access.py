"""A cluster as if it were here: `charter --context CTX -n NS COMMAND` forwards a local port to each service.

The forwards go through the Kubernetes API server, so neither kubectl nor a way into the cluster's network is needed.
"""

import base64
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward

from charter.cli.cluster import VARIABLE
from charter.cli.services import SERVICES
from charter.rpc import tls

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
            raise ClusterError(f"{error}. Set KUBECONFIG, or choose a context that is in it") from error

    def ready_pod(self, service: str) -> str:
        """Name of a pod that can be called. Raises ``ClusterError``."""
        try:
            pods = client.CoreV1Api(self.api).list_namespaced_pod(
                self.namespace, label_selector=f"app.kubernetes.io/name={service}"
            )
        except ApiException as error:
            reason = f"{error.status} {error.reason}"
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
        try:
            forward = portforward(
                client.CoreV1Api(own).connect_get_namespaced_pod_portforward,
                pod,
                self.namespace,
                ports=str(GRPC_PORT),
            )
        except ApiException as error:
            raise ClusterError(f"cannot forward a port to pod {pod}: {error.reason}") from error
        opened: socket.socket = forward.socket(GRPC_PORT)
        return opened


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Inside, every command finds the cluster's services: a local port stands for each, whatever happens to its pods.

    Raises ``ClusterError`` when the cluster cannot be used at all.
    """
    with contextlib.ExitStack() as stack:
        variables = {VARIABLE: cluster.namespace}
        if folder := _certificates(cluster, stack):
            variables[tls.VARIABLE] = folder
        for service in SERVICES:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            variables[f"CHARTER_{service.upper()}_ADDRESS"] = f"127.0.0.1:{listener.getsockname()[1]}"
            threading.Thread(target=_accept, args=(cluster, service, listener), daemon=True).start()
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


def _accept(cluster: Cluster, service: str, listener: socket.socket) -> None:
    """Forward each connection to a pod that is ready at that moment; a lost one is made again by the gRPC client."""
    while True:
        try:
            here, _ = listener.accept()
        except OSError:
            # Closed: the command has ended.
            return
        threading.Thread(target=_forward, args=(cluster, service, here), daemon=True).start()


def _forward(cluster: Cluster, service: str, here: socket.socket) -> None:
    with here:
        try:
            there = cluster.open_port(service)
        except ClusterError:
            # The caller sees a closed connection, tries again, and words its own error.
            return
        with contextlib.closing(there):
            back = threading.Thread(target=_copy, args=(there, here), daemon=True)
            back.start()
            _copy(here, there)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until either side is closed, then close both ways, so that the other direction ends too."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            target.sendall(chunk)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

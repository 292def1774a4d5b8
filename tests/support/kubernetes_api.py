"""A small Kubernetes API server over real HTTP: it stores objects, validates what it is sent, serves watches, and
allows exactly what Roles allow. It is no part of Charter and knows nothing of it."""

import contextlib
import json
import socket
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kubernetes_validate

from tests.support.kubernetes_portforward import forward

VERSIONS = ("1.35", "1.37")

Object = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """What a request is about, read from its path."""

    group: str
    namespace: str
    resource: str
    name: str
    subresource: str = ""

    @classmethod
    def of(cls, path: str) -> "Target":
        """From ``/apis/GROUP/VERSION/namespaces/NS/RESOURCE[/NAME[/SUB]]`` or ``/api/v1/...``."""
        parts = path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        return cls(group, namespace, *[*rest, "", ""][:3])


class ApiError(Exception):
    """Answered as a ``Status`` object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


@dataclass
class Cluster:
    """The stored objects and everything that happened to them."""

    rules: list[Object]
    changed: threading.Condition = field(default_factory=threading.Condition)
    # (resource, namespace, name) -> object
    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    # (version, type, resource, object)
    history: list[tuple[int, str, str, Object]] = field(default_factory=list)
    version: int = 0
    # Older events are forgotten.
    compacted: int = 0
    # Ends every watch that began under an earlier number.
    connection: int = 0
    away: bool = False
    # (group, resource, verb) that requests were allowed to do.
    used: set[tuple[str, str, str]] = field(default_factory=set)
    # Answers to GET of a whole path, for what is no object: /version, /apis/.
    documents: dict[str, Object] = field(default_factory=dict)
    # (pod, port) -> where a port-forward leads, and the clients' connections of all of them.
    ports: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    forwards: list[socket.socket] = field(default_factory=list)

    def allowed(self, group: str, resource: str, verb: str, name: str = "") -> bool:
        """Whether a rule allows it, as RBAC decides."""
        return any(
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for rule in self.rules
        )

    def authorise(self, target: Target, verb: str) -> None:
        """Refuse what no rule allows."""
        resource = f"{target.resource}/{target.subresource}" if target.subresource else target.resource
        if self.allowed(target.group, resource, verb, target.name):
            self.used.add((target.group, resource, verb))
            return
        raise ApiError(403, "Forbidden", f"{resource} is forbidden: cannot {verb} {resource} {target.name}".strip())

    def put(self, resource: str, one: Object, event: str = "MODIFIED") -> Object:
        """Store an object and tell the watches."""
        with self.changed:
            self.version += 1
            metadata = one["metadata"]
            metadata["resourceVersion"] = str(self.version)
            key = (resource, metadata.get("namespace", ""), metadata["name"])
            if event == "DELETED":
                self.objects.pop(key, None)
            else:
                self.objects[key] = one
            self.history.append((self.version, event, resource, json.loads(json.dumps(one))))
            self.changed.notify_all()
        return one

    def create(self, resource: str, namespace: str, one: Object) -> Object:
        """Validate and store a new object."""
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise ApiError(422, "Invalid", f"{one.get('kind')} is invalid: {error.message}") from error
        if (resource, namespace, one["metadata"]["name"]) in self.objects:
            raise ApiError(409, "AlreadyExists", f'{resource} "{one["metadata"]["name"]}" already exists')
        stamps = {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "namespace": namespace}
        return self.put(resource, {**one, "metadata": {**one["metadata"], **stamps}}, "ADDED")

    def get(self, resource: str, namespace: str, name: str) -> Object:
        """An object, or 404."""
        try:
            return self.objects[resource, namespace, name]
        except KeyError:
            raise ApiError(404, "NotFound", f'{resource} "{name}" not found') from None

    def of(self, resource: str) -> list[Object]:
        """Every object of a resource."""
        with self.changed:
            return [one for (kind, _, _), one in self.objects.items() if kind == resource]

    def remove(self, resource: str, namespace: str, name: str) -> None:
        """Delete an object and what it owns, at once."""
        one = self.get(resource, namespace, name)
        self.put(resource, one, "DELETED")
        for (kind, where, owned), candidate in list(self.objects.items()):
            if any(ref["uid"] == one["metadata"]["uid"] for ref in candidate["metadata"].get("ownerReferences", ())):
                self.remove(kind, where, owned)

    def drop_connections(self) -> None:
        """End every watch and port-forward, as a proxy or a restart of the API server does."""
        with self.changed:
            self.connection += 1
            self.changed.notify_all()
            broken, self.forwards[:] = [*self.forwards], []
        for connection in broken:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def now() -> str:
    """This moment as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def matches(one: Object, query: dict[str, str]) -> bool:
    """Whether the field selector (``metadata.name`` alone) and the label selector (``=`` alone) choose an object."""
    labels = one["metadata"].get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = term.partition("=")
        assert key == "metadata.name", key
        if one["metadata"]["name"] != value:
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self, act: Any) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "null") if length else None
        try:
            if self.cluster.away:
                raise ApiError(503, "ServiceUnavailable", "the API server is away")
            if (document := self.cluster.documents.get(url.path)) is not None:
                self._answer(200, document)
                return
            act(Target.of(url.path), query, body)
        except ApiError as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": error.code}
            self._answer(error.code, {**status, "reason": error.reason, "message": error.message})

    def _answer(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_POST(self) -> None:
        self._serve(self._post)

    def do_DELETE(self) -> None:
        self._serve(self._delete)

    def _get(self, target: Target, query: dict[str, str], body: object) -> None:
        if target.subresource == "portforward":
            self.cluster.authorise(target, "get")
            port = int(query["ports"])
            forward(self, port, self.cluster.ports[target.name, port], self.cluster.forwards)
        elif target.name:
            self.cluster.authorise(target, "get")
            self._answer(200, self.cluster.get(target.resource, target.namespace, target.name))
        elif query.get("watch") in ("true", "True"):
            self.cluster.authorise(target, "watch")
            self._watch(target, query)
        else:
            self.cluster.authorise(target, "list")
            with self.cluster.changed:
                found = [one for one in self.cluster.of(target.resource) if matches(one, query)]
                version = str(self.cluster.version)
            self._answer(200, {"kind": "List", "metadata": {"resourceVersion": version}, "items": found})

    def _post(self, target: Target, query: dict[str, str], body: Object) -> None:
        if target.resource == "selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            allowed = self.cluster.allowed(asked.get("group", ""), resource, asked["verb"])
            self._answer(201, {**body, "status": {"allowed": allowed}})
            return
        self.cluster.authorise(target, "create")
        self._answer(201, self.cluster.create(target.resource, target.namespace, body))

    def _delete(self, target: Target, query: dict[str, str], body: object) -> None:
        self.cluster.authorise(target, "delete")
        one = self.cluster.get(target.resource, target.namespace, target.name)
        if query.get("propagationPolicy") == "Foreground":
            # Whoever runs its pods removes it when they have ended.
            self.cluster.put(target.resource, {**one, "metadata": {**one["metadata"], "deletionTimestamp": now()}})
        else:
            self.cluster.remove(target.resource, target.namespace, target.name)
        self._answer(200, {"kind": "Status", "status": "Success"})

    def _watch(self, target: Target, query: dict[str, str]) -> None:
        cluster, since = self.cluster, int(query.get("resourceVersion") or 0)
        connection = cluster.connection
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if since < cluster.compacted:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            self._event("ERROR", gone)
            return
        while True:
            with cluster.changed:
                news = [event for event in cluster.history if event[0] > since]
                if not news:
                    if cluster.connection != connection:
                        return
                    cluster.changed.wait(0.5)
                    continue
            for version, kind, resource, one in news:
                since = version
                if resource == target.resource and matches(one, query):
                    self._event(kind, one)

    def _event(self, kind: str, one: Object) -> None:
        self.wfile.write(json.dumps({"type": kind, "object": one}).encode() + b"\n")
        self.wfile.flush()


@contextmanager
def api_server(rules: list[Object]) -> Iterator[tuple[Cluster, str]]:
    """Serve a cluster in which the caller may do what ``rules`` say; gives it and its URL."""
    cluster = Cluster(rules)
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="kubernetes-api")
    thread.start()
    try:
        yield cluster, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        cluster.drop_connections()
        server.shutdown()
        server.server_close()
        thread.join()

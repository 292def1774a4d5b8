"""A hub that takes models, on this machine: as much of the Hugging Face hub's protocol as its client asks for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_only-for-this-test"


@dataclass
class Repository:
    """Files of the newest commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class ModelHub:
    """Repositories by name. Whoever has ``TOKEN`` may write to those of ``org``."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    # Large files by their sha256, as they come before the commit.
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def running_model_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """The hub that the client of this process asks."""
    hub = ModelHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            hub.asked.append(f"GET {self.path}")
            name = self.path.removeprefix("/api/models/")
            if name not in hub.repositories:
                return self._send(404, {"error": "no such repository"})
            return self._send(200, {"id": name, "private": hub.repositories[name].private, "siblings": []})

        def do_PUT(self) -> None:
            content = self._body()
            hub.large[self.path.removeprefix("/large/")] = content
            self._send(200, {})

        def do_POST(self) -> None:
            hub.asked.append(f"POST {self.path}")
            body = self._body()
            if self.path == "/api/validate-yaml":
                return self._send(200, {"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._send(401, {"error": "Invalid username or password."})
            if self.path == "/api/repos/create":
                return self._create(json.loads(body))
            if self.path.endswith(".git/info/lfs/objects/batch"):
                return self._send(200, {"objects": [self._large(one) for one in json.loads(body)["objects"]]})
            name = "/".join(self.path.split("/")[3:5])
            if self.path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                modes = {True: "lfs", False: "regular"}
                said = [{"path": one["path"], "uploadMode": modes[_is_large(one["path"])]} for one in files]
                return self._send(200, {"files": [one | {"shouldIgnore": False} for one in said]})
            return self._commit(name, [json.loads(line) for line in body.splitlines()])

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization')}/{asked['name']}"
            if asked.get("organization") != "org":
                return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
            known = name in hub.repositories
            # Without a word a repository is public.
            visible = asked.get("visibility", "private" if asked.get("private") else "public")
            hub.repositories.setdefault(name, Repository(visible == "private"))
            return self._send(409 if known else 200, {"url": f"{hub.address}/{name}"})

        def _large(self, asked: dict[str, Any]) -> dict[str, Any]:
            upload = {"href": f"{hub.address}/large/{asked['oid']}", "header": {}}
            return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

        def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
            files = hub.repositories[name].files
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                    assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            self._send(200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{hub.address}/{name}/commit/1"})

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _send(self, status: int, content: Any) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    # The client's own protocol for large files, which it speaks to every hub where its library is there.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")

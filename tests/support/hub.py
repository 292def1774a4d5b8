"""A hub of data sets on this machine: as much of the Hugging Face hub's protocol as its client asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Hub:
    """Data sets by name, as the files of one commit each. ``asked`` are the requests that came."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.asked: list[str] = []

    def put(self, name: str, files: dict[str, bytes]) -> str:
        """Make these the files of a data set, and return the commit."""
        self.sets[name] = files
        content = b"".join(key.encode() + value for key, value in sorted(files.items()))
        self.commits[name] = hashlib.sha1(content).hexdigest()
        return self.commits[name]


@contextmanager
def running_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that the client of this process asks, with ``cache`` for what it fetches. Behind the block it is gone."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def _answer(self, body: bool) -> None:
            hub.asked.append(self.path)
            parts = self.path.split("?")[0].strip("/").split("/")
            api = parts[0] == "api"
            name = "/".join(parts[2:4] if api else parts[1:3])
            if name not in hub.sets:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
            commit, files = hub.commits[name], hub.sets[name]
            revision = parts[5] if api else parts[4]
            if revision not in ("main", commit):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
            if api:
                info = {"id": name, "sha": commit, "siblings": [{"rfilename": one} for one in files]}
                return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            content = files.get("/".join(parts[5:]))
            if content is None:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            marks = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            return self._send(200, content, marks, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

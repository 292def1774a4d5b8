"""A small OpenAI-compatible endpoint for tests: real HTTP on a free port, with answers that the test decides."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

MODEL = "test-model"

Body = Mapping[str, Any]


@dataclass
class Failure:
    """An HTTP error to answer with."""

    status: int
    message: str = "told to fail"
    code: str | None = None
    # Retries at once by default: the tests do not wait for back-off.
    headers: Mapping[str, str] = field(default_factory=lambda: {"retry-after-ms": "1"})


@dataclass
class Answer:
    """Text to answer with, and the probabilities of its first token where log-probs are asked for."""

    text: str = ""
    first_token: Mapping[str, float] | None = None
    finish: str = "stop"


@dataclass
class Endpoint:
    """What the endpoint says, and what it was asked."""

    reply: Callable[[Body], Answer | Failure]
    url: str = ""
    requests: list[Body] = field(default_factory=list)
    most_at_once: int = 0
    usage: dict[str, int] | None = field(
        default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    )
    _under_way: int = 0
    _lock: Lock = field(default_factory=Lock)

    def answer(self, body: Body) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        """Status, headers and JSON for one request."""
        with self._lock:
            self.requests.append(body)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            reply = self.reply(body)
        finally:
            with self._lock:
                self._under_way -= 1
        if isinstance(reply, Failure):
            return (
                reply.status,
                reply.headers,
                {"error": {"message": reply.message, "code": reply.code, "type": "test"}},
            )
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": reply.text},
            "finish_reason": reply.finish,
        }
        if body.get("logprobs") and reply.first_token is not None:
            likely = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in reply.first_token.items()]
            choice["logprobs"] = {"content": [{**likely[0], "top_logprobs": likely}]}
        return (
            200,
            {},
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": MODEL,
                "choices": [choice],
                "usage": self.usage,
            },
        )


def last_message(body: Body) -> str:
    """Text of the last message of a request."""
    return str(body["messages"][-1]["content"])


@contextmanager
def endpoint(reply: Callable[[Body], Answer | Failure], port: int = 0) -> Iterator[Endpoint]:
    """Serve inside the block, at a free port where none is named."""
    state = Endpoint(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {}, {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*state.answer(body))

        def _send(self, status: int, headers: Mapping[str, str], content: dict[str, Any]) -> None:
            payload = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

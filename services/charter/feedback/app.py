"""The page over HTTP: sign-in, JSON calls, streamed chats, and the static files."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import grpc
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from charter.chat import ChatMessage
from charter.feedback.labels import Label, LabelError
from charter.feedback.room import Room
from charter.rpc.errors import ServiceError
from charter.rpc.messages import proto_messages
from charter.v1 import types_pb2

B = TypeVar("B", bound=BaseModel)

_STATIC = Path(__file__).parent / "static"
_COOKIE = "charter_feedback"
_COOKIE_SECONDS = 30 * 24 * 3600
_MOST_BODY_BYTES = 4 * 1024 * 1024

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _SignIn(_Body):
    token: Annotated[str, Field(max_length=1000)]


class _Next(_Body):
    skip: Annotated[str, Field(max_length=100)] = ""


class _Undo(_Body):
    comparison: Annotated[str, Field(min_length=1, max_length=200)]


class _Turn(_Body):
    role: Literal["user", "assistant"]
    content: Annotated[str, Field(min_length=1, max_length=100_000)]


class _Chat(_Body):
    messages: Annotated[list[_Turn], Field(min_length=1, max_length=199)]

    def conversation(self) -> list[types_pb2.Message]:
        """Raises ``_RefusedError`` unless turns alternate and a person's is the last."""
        roles = [turn.role for turn in self.messages]
        if roles != [("user", "assistant")[place % 2] for place in range(len(roles))] or roles[-1] != "user":
            raise _RefusedError(400, "turns must alternate, and the first and the last must be yours")
        return proto_messages(ChatMessage(turn.role, turn.content) for turn in self.messages)


class _RefusedError(Exception):
    """Answers the request with a status and words for a person."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def build(room: Room) -> Starlette:
    """The web application of one room, which is started already."""

    async def page(_: Request) -> Response:
        return FileResponse(_STATIC / "page.html")

    async def sign_in(request: Request) -> Response:
        token = (await _read(request, _SignIn)).token.strip()
        labeller = room.labellers.who(token)
        if labeller is None:
            raise _RefusedError(401, "Nobody has this token. Ask whoever sent you the link.")
        response = JSONResponse(room.session(labeller))
        response.set_cookie(
            _COOKIE, token, _COOKIE_SECONDS, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return response

    async def sign_out(_: Request) -> Response:
        response = JSONResponse({})
        response.delete_cookie(_COOKIE, httponly=True, samesite="strict")
        return response

    async def session(request: Request) -> Response:
        return JSONResponse(room.session(_labeller(room, request)))

    async def next_pair(request: Request) -> Response:
        labeller = _labeller(room, request)
        return JSONResponse(await room.next(labeller, (await _read(request, _Next)).skip))

    async def label(request: Request) -> Response:
        labeller = _labeller(room, request)
        return JSONResponse(await room.label(await _read(request, Label), labeller))

    async def undo(request: Request) -> Response:
        labeller = _labeller(room, request)
        return JSONResponse(await room.undo((await _read(request, _Undo)).comparison, labeller))

    async def statistics(request: Request) -> Response:
        return JSONResponse(await room.statistics(_labeller(room, request)))

    async def chat(request: Request) -> Response:
        labeller = _labeller(room, request)
        messages = (await _read(request, _Chat)).conversation()
        return StreamingResponse(_lines(room.chat(messages, labeller)), media_type="application/x-ndjson")

    return Starlette(
        middleware=[Middleware(_Guard)],
        exception_handlers={
            _RefusedError: lambda _, error: JSONResponse({"error": str(error)}, getattr(error, "status", 500)),
            ServiceError: _service_failed,
            LabelError: lambda _, error: JSONResponse({"error": str(error)}, 400),
        },
        routes=[
            Route("/", page),
            Route("/api/sign-in", sign_in, methods=["POST"]),
            Route("/api/sign-out", sign_out, methods=["POST"]),
            Route("/api/session", session),
            Route("/api/next", next_pair, methods=["POST"]),
            Route("/api/labels", label, methods=["POST"]),
            Route("/api/undo", undo, methods=["POST"]),
            Route("/api/statistics", statistics),
            Route("/api/chat", chat, methods=["POST"]),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
    )


class _Guard:
    """Security headers on every answer; no calls from other sites' pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin", "")
        if origin and origin.partition("://")[2] != headers.get("host", ""):
            refusal = JSONResponse({"error": "this call comes from another site's page"}, 403)
            await refusal(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = {**_HEADERS, "Cache-Control": "no-cache" if scope["path"].startswith("/static") else "no-store"}
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.lower().encode(), value.encode()) for name, value in extra.items()),
                ]
            await send(message)

        await self._app(scope, receive, with_headers)


def _labeller(room: Room, request: Request) -> str:
    labeller = room.labellers.who(request.cookies.get(_COOKIE, ""))
    if labeller is None:
        raise _RefusedError(401, "You are not signed in.")
    return labeller


async def _read(request: Request, kind: type[B]) -> B:
    """The body. Raises ``_RefusedError`` that names what is wrong with it."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BODY_BYTES:
            raise _RefusedError(413, f"the request holds more than {_MOST_BODY_BYTES} bytes")
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors())
        raise _RefusedError(400, problems) from error


def _service_failed(_: Request, error: Exception) -> Response:
    code = error.code if isinstance(error, ServiceError) else None
    refused = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    return JSONResponse({"error": str(error)}, 400 if refused else 503)


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Events as lines of JSON. The status is sent by then, so a failure is an event too."""
    try:
        async for event in events:
            yield json.dumps(event) + "\n"
    except (ServiceError, ValueError) as error:
        yield json.dumps({"error": str(error)}) + "\n"

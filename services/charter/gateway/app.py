"""The gateway over HTTP: OpenAI's paths, whether it is alive and ready, and errors in OpenAI's form."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from charter.gateway import chat, completions, metrics
from charter.gateway.errors import RequestError, of_service
from charter.gateway.parameters import ChatParameters, CompletionParameters, Parameters
from charter.gateway.policies import Model, Policies, Policy
from charter.rpc.errors import ServiceError

P = TypeVar("P", bound=Parameters)

logger = logging.getLogger("charter.gateway")

_MOST_BODY_BYTES = 32 * 1024 * 1024
_STARTED = int(time.time())
# Paths by which metrics are counted; others are one.
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models")


def build(policies: Policies, api_key: str = "") -> Starlette:
    """The web application. With ``api_key`` every request under /v1 must carry it."""

    async def alive(_: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(_: Request) -> Response:
        serves = await policies.ready()
        return JSONResponse({"ready": serves}, 200 if serves else 503)

    async def models(request: Request) -> Response:
        _require_key(request, api_key)
        return JSONResponse({"object": "list", "data": [_model(one) for one in await policies.models()]})

    async def model(request: Request) -> Response:
        _require_key(request, api_key)
        name = request.path_params["name"]
        found = [one for one in await policies.models() if one.name == name]
        if not found:
            raise RequestError(404, f"there is no model {name!r} here", "model", "model_not_found")
        return JSONResponse(_model(found[0]))

    async def chat_completions(request: Request) -> Response:
        _require_key(request, api_key)
        return await _answer(request, policies, ChatParameters, chat.whole, chat.chunks)

    async def text_completions(request: Request) -> Response:
        _require_key(request, api_key)
        return await _answer(request, policies, CompletionParameters, completions.whole, completions.chunks)

    return Starlette(
        middleware=[Middleware(_Counted)],
        exception_handlers={
            RequestError: _refused,
            ServiceError: _service_failed,
            HTTPException: _no_such_path,
            Exception: _broken,
        },
        routes=[
            Route("/healthz", alive),
            Route("/readyz", ready),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", text_completions, methods=["POST"]),
        ],
    )


async def _answer(
    request: Request,
    policies: Policies,
    kind: type[P],
    whole: Callable[[P, Policy], Coroutine[Any, Any, dict[str, Any]]],
    chunks: Callable[[P, Policy], AsyncGenerator[dict[str, Any], None]],
) -> Response:
    """The answer to a request, whole or as a stream of events; it ends when the client hangs up."""
    started = time.monotonic()
    asked = kind.read(await _body(request))
    try:
        policy = await policies.find(asked.model)
        if not asked.stream:
            return JSONResponse(await _unless_gone(request, whole(asked, policy)))
        answers = chunks(asked, policy)
        # Before the status is sent: what the policy refuses it refuses at once.
        first = await _unless_gone(request, anext(answers))
    except ServiceError as error:
        raise of_service(error, kind.prompts) from error
    metrics.FIRST_TEXT_SECONDS.observe(time.monotonic() - started)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(first, answers, kind.prompts), media_type="text/event-stream", headers=headers)


async def _events(
    first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any], None], prompts: str
) -> AsyncIterator[str]:
    """Server-sent events. The status is sent by then, so a failure is an event too."""
    async with aclosing(chunks):
        yield _event(first)
        try:
            async for one in chunks:
                yield _event(one)
        except (ServiceError, RequestError) as error:
            metrics.BROKEN_STREAMS.inc()
            logger.warning("a stream broke off", extra={"reason": str(error)})
            refused = error if isinstance(error, RequestError) else of_service(error, prompts)
            yield _event(refused.body())
            return
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of work, which is cancelled when the client hangs up."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.create_task(hung_up())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "the client hung up")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BODY_BYTES:
                words = f"the request holds more than {_MOST_BODY_BYTES} bytes"
                raise RequestError(413, words, None, "request_too_large")
    except ClientDisconnect as error:
        raise RequestError(499, "the client hung up") from error
    return bytes(body)


def _require_key(request: Request, api_key: str) -> None:
    # The bytes as they came.
    given = request.headers.get("Authorization", "").encode("latin-1")
    if given[:7].lower() == b"bearer ":
        given = given[7:]
    if api_key and not secrets.compare_digest(given, api_key.encode()):
        raise RequestError(401, "the API key is not the gateway's", None, "invalid_api_key")


def _model(one: Model) -> dict[str, Any]:
    """OpenAI's fields, the longest context as vLLM calls it (null: not known yet), and which weights are served."""
    return {
        "id": one.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "charter",
        "max_model_len": one.info.max_context_tokens or None,
        "engine": one.info.engine,
        "weight_version": one.info.weight_version,
    }


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    if error.status >= 500:
        logger.warning("a request failed", extra={"status": error.status, "reason": str(error)})
    return error.response()


async def _service_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return await _refused(request, of_service(error, "model"))


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = f"{error.detail}: {request.method} {request.url.path}"
    return RequestError(error.status_code, words, None, "unknown_url").response()


async def _broken(_: Request, error: Exception) -> Response:
    # Uvicorn logs it with its traceback.
    return RequestError(500, f"{type(error).__name__}; the log of the gateway has details").response()


class _Counted:
    """Counts requests by path and status, and how long they take."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = next((one for one in _PATHS if scope["path"].startswith(one)), "other")
        started, status = time.monotonic(), "500"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        metrics.UNDER_WAY.inc()
        try:
            await self._app(scope, receive, noting)
        finally:
            metrics.UNDER_WAY.dec()
            metrics.REQUESTS.labels(path, status).inc()
            metrics.SECONDS.labels(path).observe(time.monotonic() - started)

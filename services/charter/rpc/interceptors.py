"""The one server interceptor: metrics, trace, constraints, and statuses of every call."""

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from charter.rpc import metrics, tracing
from charter.rpc.errors import StatusError, invalid_fields
from charter.rpc.logs import take_call_metadata
from charter.rpc.validation import violations

logger = logging.getLogger("charter.rpc")


def check(request: Message) -> None:
    """Raise INVALID_ARGUMENT when the request breaks a declared constraint."""
    found = violations(request)
    if found:
        raise invalid_fields(found)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each handler: counts it, checks its requests, turns what it raises into a status."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler that the call would get."""
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        # Health, reflection and unknown methods keep their own behaviour.
        if handler is None or not service.startswith("charter."):
            return handler
        return _wrap(handler, service, method)


def _wrap(handler: Any, service: str, method: str) -> Any:
    serializers = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.request_streaming and handler.response_streaming:

        async def stream_stream(
            requests: AsyncIterator[Message], context: grpc.aio.ServicerContext
        ) -> AsyncIterator[Message]:
            async with _Call("bidi_stream", service, method, context):
                async for response in handler.stream_stream(_checked(requests), context):
                    yield response

        return grpc.stream_stream_rpc_method_handler(stream_stream, **serializers)
    if handler.response_streaming:

        async def unary_stream(request: Message, context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
            async with _Call("server_stream", service, method, context):
                check(request)
                async for response in handler.unary_stream(request, context):
                    yield response

        return grpc.unary_stream_rpc_method_handler(unary_stream, **serializers)
    if handler.request_streaming:

        async def stream_unary(requests: AsyncIterator[Message], context: grpc.aio.ServicerContext) -> Any:
            async with _Call("client_stream", service, method, context):
                return await handler.stream_unary(_checked(requests), context)

        return grpc.stream_unary_rpc_method_handler(stream_unary, **serializers)

    async def unary_unary(request: Message, context: grpc.aio.ServicerContext) -> Any:
        async with _Call("unary", service, method, context):
            check(request)
            response = handler.unary_unary(request, context)
            return await response if inspect.isawaitable(response) else response

    return grpc.unary_unary_rpc_method_handler(unary_unary, **serializers)


async def _checked(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for request in requests:
        check(request)
        yield request


class _Call:
    """One call under way: its metrics, and the status of whatever it raises."""

    def __init__(self, kind: str, service: str, method: str, context: grpc.aio.ServicerContext) -> None:
        self._labels = (kind, service, method)
        self._context = context

    async def __aenter__(self) -> None:
        metrics.STARTED.labels(*self._labels).inc()
        self._start = time.monotonic()
        metadata = {key: value for key, value in self._context.invocation_metadata() or () if isinstance(value, str)}
        take_call_metadata(metadata)
        self._span = tracing.start_server_call("/".join(self._labels[1:]), metadata)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        metrics.HANDLING_SECONDS.labels(*self._labels).observe(time.monotonic() - self._start, tracing.exemplar())
        code = self._code(error)
        metrics.count_handled(*self._labels, code)
        tracing.end_call(self._span, code)
        if isinstance(error, StatusError):
            await self._context.abort_with_status(error.to_status())
        if code is grpc.StatusCode.INTERNAL:
            # What went wrong inside is for the log; the caller learns only that it did.
            logger.error("call failed", extra={"rpc": "/".join(self._labels[1:])}, exc_info=error)
            words = f"{type(error).__name__}; the log of the service has details"
            await self._context.abort(grpc.StatusCode.INTERNAL, words)

    def _code(self, error: BaseException | None) -> grpc.StatusCode:
        match error:
            case None:
                return grpc.StatusCode.OK
            case StatusError():
                return error.code
            case Exception() if not isinstance(error, grpc.aio.BaseError):
                return grpc.StatusCode.INTERNAL
            case _:
                # Cancelled by the client, or aborted by the servicer itself.
                return grpc.StatusCode.CANCELLED

"""Errors in OpenAI's form, with the HTTP status that its clients know how to act on."""

import math

import grpc
from pydantic import ValidationError
from starlette.responses import JSONResponse

from charter.rpc.errors import ServiceError

# Seconds after which to ask again where the policy does not say.
_RETRY_SECONDS = 5.0
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
# Fields of a policy's request, by what a client calls them. Prompts are messages or prompt.
_PARAMETERS = {
    "sampling.max_new_tokens": "max_tokens",
    "sampling.temperature": "temperature",
    "sampling.top_p": "top_p",
    "sampling.stop": "stop",
    "sampling.top_logprobs": "top_logprobs",
    "samples_per_prompt": "n",
}


class RequestError(Exception):
    """Answers a request with an HTTP status; ``param`` names the parameter at fault, ``code`` is for a program."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the answer, and of an event in a stream."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        wait = self.retry_after_seconds
        headers = {} if wait is None else {"Retry-After": str(math.ceil(wait))}
        return JSONResponse(self.body(), self.status, headers)


def not_served(param: str, why: str = "leave it out") -> RequestError:
    """For a parameter that OpenAI's API has and this one has not."""
    return RequestError(400, f"{param} is not served here: {why}", param, "unsupported_parameter")


def invalid(error: ValidationError) -> RequestError:
    """For a body that is not what the API takes; names the first thing that is wrong with it."""
    first = error.errors()[0]
    place = first["loc"]
    param = str(place[0]) if place else None
    if first["type"] == "extra_forbidden":
        return RequestError(400, f"{param} is no parameter of this API", param, "unknown_parameter")
    where = ".".join(map(str, place)) or "the body"
    return RequestError(400, f"{where}: {first['msg']}", param, "invalid_value")


def _refused(error: ServiceError, prompts: str) -> RequestError:
    if not error.violations:
        return RequestError(400, error.details, None, "invalid_value")
    first = error.violations[0]
    path, in_prompts = first.field, first.field.startswith("prompts")
    param = prompts if in_prompts else _PARAMETERS.get(path.partition("[")[0])
    code = "context_length_exceeded" if first.reason == "TOO_LONG" else "invalid_value"
    # One of several prompts is named by its place, as the policy names it.
    place = path.removeprefix("prompts") if prompts == "prompt" else ""
    return RequestError(400, f"{param or path}{place if in_prompts else ''}: {first.description}", param, code)


def of_service(error: ServiceError, prompts: str) -> RequestError:
    """For a call that a policy service has not answered; ``prompts`` is what the client calls its prompts."""
    wait = error.retry_after_seconds
    match error.code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return _refused(error, prompts)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return RequestError(429, f"the model's service is full: {error.details}", None, "rate_limit_exceeded", wait)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            words = f"the model's service is away: {error.details}"
            return RequestError(503, words, None, "service_unavailable", wait or _RETRY_SECONDS)
        case grpc.StatusCode.UNIMPLEMENTED:
            words = "the model's service is no policy: a judge with engine openai is to be asked at its endpoint"
            return RequestError(404, words, "model", "model_not_found")
        case _:
            return RequestError(500, f"the model's service failed: {error.details}", None, "policy_failed")

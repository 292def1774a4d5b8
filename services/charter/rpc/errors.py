"""Errors on both sides of a call: a status for the servicer, words for the person behind the client."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from charter.rpc.stalled import StalledError
from charter.rpc.validation import Violation


class StatusError(Exception):
    """Raised anywhere in a servicer; the interceptor answers the call with this status."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        retry_after_seconds: float | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.violations = tuple(violations)

    def to_status(self) -> grpc.Status:
        """The status with its google.rpc details (BadRequest, RetryInfo)."""
        details = []
        if self.violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=v.field, description=v.description, reason=v.reason
                        )
                        for v in self.violations
                    ]
                )
            )
        if self.retry_after_seconds is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_after_seconds * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        packed = []
        for detail in details:
            box = any_pb2.Any()
            box.Pack(detail)
            packed.append(box)
        number = code_pb2.Code.Value(self.code.name)
        status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=number, message=self.message, details=packed))
        return status


def invalid_fields(found: Sequence[Violation]) -> StatusError:
    """INVALID_ARGUMENT that names each field in its message and in a BadRequest."""
    message = "; ".join(f"{v.field}: {v.description}" for v in found)
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message, violations=found)


class ServiceError(RuntimeError):
    """A call to a service failed; the message says which service, where, why and what to do.

    ``retry_after_seconds`` is what the service asked to be waited for, None when it did not. ``violations`` are the
    fields that it refused, as far as it names them.
    """

    def __init__(
        self,
        service: str,
        address: str,
        code: grpc.StatusCode,
        details: str,
        retry_after_seconds: float | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        self.service = service
        self.address = address
        self.code = code
        self.details = details
        self.retry_after_seconds = retry_after_seconds
        self.violations = tuple(violations)
        super().__init__(f"the {service} service at {address} {_reason(service, code, _shortened(details))}")


def _shortened(details: str) -> str:
    """What gRPC says of a connection without the layers in between: its last part."""
    _, found, last = details.rpartition("last error: ")
    return last.rpartition(": ")[2] if found else details


def _reason(service: str, code: grpc.StatusCode, details: str) -> str:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            if service == "reward":
                return f"cannot be reached ({details}). Is it running? It is the spec's reward.service."
            return (
                f"cannot be reached ({details}). Is it running? `charter status` tells; `charter up` starts all "
                f"services, `charter serve {service.split()[0]}` this one."
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"did not answer in time ({details}). `charter status` tells whether it serves; its log says why."
        case grpc.StatusCode.INVALID_ARGUMENT:
            return f"refused the request: {details}"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"does not know this call: {details}. Is another service listening on that port?"
        case _:
            return f"answered {code.name}: {details}"


@contextmanager
def explained(service: str, address: str) -> Iterator[None]:
    """Turn a ``grpc.RpcError`` or ``StalledError`` raised inside into a ``ServiceError``."""
    try:
        yield
    except StalledError as error:
        raise ServiceError(service, address, grpc.StatusCode.DEADLINE_EXCEEDED, str(error)) from error
    except grpc.RpcError as error:
        if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
            raise
        raise ServiceError(
            service, address, error.code(), error.details() or "no details", _retry_after(error), _violations(error)
        ) from error


def _violations(error: grpc.Call | grpc.aio.AioRpcError) -> list[Violation]:
    """Fields of the error's BadRequest, if it has one."""
    status = rpc_status.from_call(error)
    found: list[Violation] = []
    for detail in status.details if status is not None else ():
        refused = error_details_pb2.BadRequest()
        if detail.Unpack(refused):
            found += [Violation(one.field, one.description, one.reason) for one in refused.field_violations]
    return found


def _retry_after(error: grpc.Call | grpc.aio.AioRpcError) -> float | None:
    """Seconds of the error's RetryInfo, if it has one."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToMilliseconds() / 1000)
    return None

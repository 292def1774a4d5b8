"""How long a command waits for a trainer that is away."""

import time

import grpc

_PATIENCE_SECONDS = 120.0
_RETRY_SECONDS = 1.0


class Patience:
    """Bears a broken connection for two minutes after the trainer was last heard."""

    def __init__(self) -> None:
        self._end = 0.0
        self.renew()

    def renew(self) -> None:
        """The trainer was heard."""
        self._end = time.monotonic() + _PATIENCE_SECONDS

    def wait(self, error: grpc.RpcError) -> None:
        """Wait before the next try. Raises ``error`` if patience has run out, or if it is no broken connection."""
        broken = isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE
        if not broken or time.monotonic() > self._end:
            raise error
        time.sleep(_RETRY_SECONDS)

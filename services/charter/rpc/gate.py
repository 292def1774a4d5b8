"""Whether a service takes calls that need its model, and how many of them are under way."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from charter.rpc.errors import StatusError

_LOADING_SECONDS, _SLEEPING_SECONDS = 5.0, 10.0


class Gate:
    """Shut until the model is loaded, and again while it sleeps. All on one event loop."""

    def __init__(self, model: str = "the model") -> None:
        self._model = model
        self._loaded = False
        self._open = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def require_open(self) -> None:
        """Raise UNAVAILABLE before the model is loaded, RESOURCE_EXHAUSTED while it sleeps, both with RetryInfo."""
        if not self._loaded:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, f"{self._model} is not loaded yet", _LOADING_SECONDS)
        if not self._open:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._model} sleeps while a run trains on its GPU; it is back when the run's step is done",
                _SLEEPING_SECONDS,
            )

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call that needs the model; raises as ``require_open``."""
        self.require_open()
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    def open(self) -> None:
        """Take calls from now on."""
        self._loaded = self._open = True

    async def shut(self) -> None:
        """Take no more calls; returns when those under way have ended. A caller that is cancelled opens it again."""
        self.require_open()
        self._open = False
        try:
            await self._idle.wait()
        except asyncio.CancelledError:
            self._open = True
            raise

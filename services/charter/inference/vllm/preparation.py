"""Preparing weights in vLLM's worker processes while they go on to generate."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

from charter.inference.engine import WeightsNotTakenError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# vLLM's processes tell nothing by themselves; they answer between two steps.
_POLL_SECONDS = 0.02


class Preparation:
    """A thread that prepares the weights of one file. ``prepare`` returns what then puts them into the live model."""

    def __init__(self, path: str, prepare: Callable[[], Callable[[], None]]) -> None:
        self.path = path
        self._prepare = prepare
        self._serve: Callable[[], None] | None = None
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="prepare-weights", daemon=True)
        self._thread.start()

    def error(self) -> str | None:
        """Why it failed, empty when it did not; None while it goes on."""
        return None if self._thread.is_alive() else self._error

    def serve(self) -> None:
        """Put the weights into the live model; no step of it may be under way."""
        if self._serve is None:
            raise RuntimeError(f"{self.path} is not prepared: {self.error()}")
        self._serve()

    def _run(self) -> None:
        try:
            if sys.platform == "linux":
                # On CPUs vLLM binds a worker to the cores that it computes on and leaves another one free. A new thread
                # begins with the same cores, and would take them from generation.
                os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
            with torch.no_grad():
                self._serve = self._prepare()
        except Exception as error:  # noqa: BLE001 (told to who asks)
            self._error = f"{type(error).__name__}: {error}"


class PreparingBackend(Protocol):
    """A worker's backend of vLLM's weight-transfer API that can prepare."""

    def prepare(self, path: str) -> None:
        """Begin to prepare a safetensors file with all weights, named as in the checkpoint."""

    def preparation_error(self) -> str | None:
        """As ``Preparation.error``."""


class PreparingWorker:
    """What a worker can be asked for besides vLLM's own methods. vLLM adds this class to the bases of its worker."""

    weight_transfer_engine: PreparingBackend

    def prepare_weights(self, path: str) -> None:
        """Returns at once."""
        self.weight_transfer_engine.prepare(path)

    def preparation_error(self) -> str | None:
        """As ``Preparation.error``."""
        return self.weight_transfer_engine.preparation_error()


async def prepare(llm: "AsyncLLM", path: str, most_seconds: float) -> None:
    """Return when all workers have prepared a file.

    Raises ``WeightsNotTakenError`` when one could not, once none is at it any more; the live model is what it was.
    """
    await llm.collective_rpc("prepare_weights", args=(path,))
    async with asyncio.timeout(most_seconds):
        while None in (errors := await llm.collective_rpc("preparation_error")):  # noqa: ASYNC110 (no event comes)
            await asyncio.sleep(_POLL_SECONDS)
    if any(errors):
        raise WeightsNotTakenError(f"vLLM did not prepare the weights: {'; '.join(filter(None, errors))}")

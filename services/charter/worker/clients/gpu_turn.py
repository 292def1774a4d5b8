"""Whose turn it is on a GPU that the services share with the worker (docs/one-gpu.md)."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from charter.spec.facts import servers_sleep
from charter.worker.context import Run


class Movable(Protocol):
    """What the worker keeps between its turns."""

    def to(self, device: torch.device) -> object:
        """Move everything to a device."""


@contextmanager
def gpu_turn(run: Run, *kept: Movable) -> Iterator[None]:
    """The GPU is the worker's inside the block, where it is shared: the services sleep, ``kept`` is on the GPU.

    Afterwards ``kept`` is where the worker's models rest. Each service wakes when it is next needed; the policy, given
    new weights, in stages. Raises ``ServiceError`` when a service cannot sleep.
    """
    if not servers_sleep(run.spec.services):
        yield
        return
    run.services.sleep()
    try:
        for part in kept:
            part.to(run.device)
        yield
    except BaseException as error:
        # Activations live in the frames of what failed; the services need the room.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        for part in kept:
            part.to(run.resting_device)
        # Does nothing in a process that has not used a GPU.
        torch.cuda.empty_cache()

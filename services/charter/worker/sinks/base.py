"""What a place for a run's numbers is.

A number is called PHASE/NAME in all of them, for example ``ppo/reward_mean``. Those of a step of learning stand at
their step, others at the number of their event. A run that was resumed writes on; what it does again stands there
again.
"""

import logging
from enum import Enum, auto
from typing import Any, Protocol

from google.protobuf import json_format

from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.metrics import phase_name

logger = logging.getLogger("charter.worker")

DEFAULT_PROJECT = "charter"


class Ending(Enum):
    """How an attempt at a run came to its end."""

    FINISHED = auto()
    # Asked to, or because a newer worker took over: it can be resumed.
    STOPPED = auto()
    FAILED = auto()


class Sink(Protocol):
    """Takes the numbers of events, in their order."""

    def write(self, event: run_pb2.RunEvent) -> None:
        """Take those of one event that has some."""

    def close(self, ending: Ending) -> None:
        """Everything is on its way or on the disk when this returns."""


class Untaken:
    """Counts the events whose numbers a tracker did not take: the first is told at once, how many at the end."""

    def __init__(self, tracker: str) -> None:
        self._tracker = tracker
        self._events = 0

    def add(self, error: Exception) -> None:
        """One more, and why."""
        self._events += 1
        if self._events == 1:
            logger.warning("%s did not take the numbers of an event: %s", self._tracker, error)

    def tell(self) -> None:
        """Say how many there are."""
        if self._events:
            logger.warning("%s lacks the numbers of %d events", self._tracker, self._events)


def named(event: run_pb2.RunEvent) -> dict[str, float]:
    """The numbers of an event by PHASE/NAME."""
    phase = phase_name(event.phase).lower()
    return {f"{phase}/{name}": value for name, value in event.metrics.items()}


def place_of(event: run_pb2.RunEvent) -> int:
    """The step that an event's numbers stand at."""
    return event.step if event.HasField("step") else event.sequence


def configuration(spec: run_pb2.RunSpec) -> dict[str, Any]:
    """A spec as trackers keep what a run was started with."""
    values: dict[str, Any] = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    return values


def missing(name: str, error: ImportError) -> RunError:
    """What is raised where a sink's library is not installed."""
    return RunError(
        f"`sinks` asks for {name}, which cannot be imported where the worker runs ({error}): "
        f"pip install 'charter[{name}]' there"
    )

"""What a stage of a run is."""

from typing import Protocol

from charter.v1 import run_pb2
from charter.worker.context import Run


class Stage(Protocol):
    """One part of a run. ``charter.worker.run`` lists them in their order.

    A run is resumed in one way: its stages are gone through from the first, one that is ``done`` is passed over, and
    ``work`` goes on from what an attempt that died has left in the run's folder and in the store.
    """

    @property
    def phase(self) -> "run_pb2.Phase.ValueType":
        """The phase that it is reported as."""
        ...

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether a filled spec asks for it."""
        ...

    def done(self, run: Run) -> bool:
        """Whether the folder of the run holds all that it makes."""
        ...

    def work(self, run: Run) -> None:
        """Do it, or what is left of it.

        Raises ``Cancelled`` when asked to stop, ``Superseded`` when a newer worker took over, ``RunError`` or
        ``ServiceError`` when the run cannot go on.
        """
        ...

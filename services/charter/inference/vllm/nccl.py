"""What an engine needs to take new weights by NCCL: a group with the trainer's GPU, and broadcasts in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class CannotJoinError(RuntimeError):
    """The engine cannot be in a NCCL group; the message says why."""


@dataclass(frozen=True, slots=True)
class NcclGroup:
    """A group of ``world_size`` ranks that meet at rank 0, the trainer's."""

    master_address: str
    master_port: int
    world_size: int


@dataclass(frozen=True, slots=True)
class BroadcastTensor:
    """A tensor that is broadcast; ``dtype`` by PyTorch's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@runtime_checkable
class NcclEngine(Protocol):
    """An ``Engine`` that may be able to."""

    def nccl_ranks(self) -> int:
        """How many ranks it has in a group; 0 where it has no GPU."""

    def nccl_group(self) -> NcclGroup | None:
        """The group that it is in."""

    async def join_group(self, group: NcclGroup, first_rank: int) -> None:
        """Leave any group and join this one; returns when all its members have met.

        Raises ``CannotJoinError``, and then goes on serving what it served.
        """

    def check_broadcast(self, tensors: Sequence[BroadcastTensor]) -> None:
        """Raise ``WeightMismatchError`` when a tensor is unknown, missing or of the wrong shape."""

    async def receive_broadcast(self, tensors: Sequence[BroadcastTensor], version: int, digest: str) -> float:
        """Serve, as ``version``, what rank 0 broadcasts tensor by tensor; returns the seconds that nothing ran.

        The group is the one that it is in, the tensors are those that were checked. Raises ``RuntimeError`` when the
        broadcast breaks off; the engine is then of no use any more.
        """

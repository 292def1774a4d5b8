"""New weights by NCCL: from the worker's GPU to those of the replicas' vLLM processes.

vLLM's own trainer side (0.32) forms the group and broadcasts. It speaks to the engines through four methods
(``VLLMWeightSyncClient``), which here are gRPC calls to all replicas at once.
"""

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from contextvars import copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc
from torch import Tensor

from charter.rpc.channel import connect
from charter.rpc.errors import ServiceError, explained
from charter.v1 import types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.sender import PackedWeights, transfer_seconds

if TYPE_CHECKING:
    import torch
    from vllm.distributed.weight_transfer.base import ParamMeta
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

logger = logging.getLogger("charter.weights")

# Data types of weights, by PyTorch's names.
DTYPES: "dict[types_pb2.DataType.ValueType, str]" = {
    types_pb2.DATA_TYPE_FLOAT32: "float32",
    types_pb2.DATA_TYPE_BFLOAT16: "bfloat16",
    types_pb2.DATA_TYPE_FLOAT16: "float16",
}
# All members must have met in this time; vLLM itself gives up after 300 s.
_JOIN_SECONDS = 330.0
# A replica that answers so is away or was restarted: it catches up without NCCL.
_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
)


class NcclError(RuntimeError):
    """The worker's side of NCCL failed; the message says at what."""


def first_ranks(ranks: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """The first rank of each replica in the group, by control port, and the size of the group.

    ``ranks`` is how many each has. Rank 0 is the worker's; the replicas' follow in the order of the mapping, without
    gaps.
    """
    following, size = {}, 1
    for control, count in ranks.items():
        following[control] = size
        size += count
    return following, size


class NcclSender:
    """Rank 0 of a group with some replicas, formed anew when these change. ``close`` at the end."""

    def __init__(self, device: "torch.device") -> None:
        self._source = _Tensors(device)
        self._group: tuple[_Members, NCCLTrainerWeightTransferEngine] | None = None

    def close(self) -> None:
        """Leave the group, also in the middle of a broadcast."""
        if self._group is not None:
            _, engine = self._group
            self._group = None
            engine.shutdown()

    def send(self, weights: PackedWeights, tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> None:
        """Have replicas serve the weights: those with these control ports, which have so many ranks.

        ``tensors`` are what ``weights`` was packed from. A replica that is away, or was restarted, is no error: then
        nobody is sent this version, and the log says so. Raises ``ServiceError`` when a replica refuses, ``NcclError``
        when the worker's side fails.
        """
        self._source.tensors = tensors
        try:
            if self._group is None or self._group[0].ranks != ranks:
                self.close()
                members = _Members(dict(ranks), self._source)
                self._group = members, _join(members, self._source)
            members, engine = self._group
            members.weights, members.lost = weights, Future()
            _broadcast(members, engine)
        except ServiceError as error:
            self.close()
            if error.code not in _AWAY:
                raise
            logger.warning("sending without NCCL", extra={"service": "policy", "reason": str(error)})
        except BaseException:
            self.close()
            raise


def _broadcast(members: "_Members", engine: "NCCLTrainerWeightTransferEngine") -> None:
    threads = ThreadPoolExecutor(1, thread_name_prefix="nccl")
    sending = threads.submit(copy_context().run, engine.send_weights)
    # Where a member is lost in the middle, the thread gets out only when the group is left.
    threads.shutdown(wait=False)
    try:
        wait([sending, members.lost], return_when=FIRST_COMPLETED)
        if members.lost.done():
            members.lost.result()
        sending.result()
    except ServiceError:
        raise
    except RuntimeError as error:
        raise NcclError(f"broadcasting the weights by NCCL failed: {error}") from error
    finally:
        members.hang_up()


def _join(members: "_Members", source: "_Tensors") -> "NCCLTrainerWeightTransferEngine":
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    address = _own_address(next(iter(members.ranks)))
    place = NCCLTrainerInitInfo(address, _free_port(address), members.world_size, packed=False, rank=0)
    try:
        engine = NCCLTrainerWeightTransferEngine.trainer_init(place, client=members, source=source)
    except RuntimeError as error:
        # vLLM raises what went wrong here first, which may be no more than that nobody came.
        if members.refusal is not None:
            raise members.refusal from error
        raise NcclError(f"the worker cannot form a NCCL group with {', '.join(members.ranks)}: {error}") from error
    if not engine.model_update_group.available:
        engine.shutdown()
        raise NcclError("the library of NCCL cannot be loaded where the worker runs")
    return engine


class _Tensors:
    """vLLM's ``WeightSource``: what is broadcast next, each tensor on the GPU only for as long as it takes."""

    def __init__(self, device: "torch.device") -> None:
        self._device = device
        self.tensors: Mapping[str, Tensor] = {}

    def metadata(self) -> "list[ParamMeta]":
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.tensors.items():
            yield name, tensor.detach().to(self._device)


class _Members:
    """vLLM's ``VLLMWeightSyncClient`` for several replicas."""

    def __init__(self, ranks: dict[str, int], source: _Tensors) -> None:
        self.ranks = ranks
        self._first_ranks, self.world_size = first_ranks(ranks)
        self._source = source
        self._place: dict[str, Any] = {}
        # Why there is no group.
        self.refusal: ServiceError | None = None
        # The next version, and what is raised when a replica fails in the middle of it.
        self.weights: PackedWeights
        self.lost: Future[None]
        self._open = ExitStack()
        self._calls: dict[str, _Broadcast] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._place = {name: init_info[name] for name in ("master_address", "master_port")}

        def join(control: str) -> None:
            request = weights_pb2.JoinGroupRequest(
                **self._place, rank_offset=self._first_ranks[control], world_size=self.world_size
            )
            with explained("policy weight", control), connect(control) as channel:
                weights_pb2_grpc.WeightServiceStub(channel).JoinGroup(request, timeout=_JOIN_SECONDS)

        try:
            self._each(join)
        except ServiceError as error:
            self.refusal = error
            raise

    def start_weight_update(self) -> None:
        header = self._header()
        self._calls = {control: _Broadcast(control, len(self.weights.blob), self._open) for control in self.ranks}
        self._each(lambda control: self._calls[control].say(weights_pb2.ReceiveBroadcastRequest(header=header)))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        try:
            self._each(lambda control: self._calls[control].say(weights_pb2.ReceiveBroadcastRequest(go=True)))
        except ServiceError as error:
            self.lost.set_exception(error)
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Each replica has finished by itself."""

    def hang_up(self) -> None:
        """End the calls of this version."""
        self._open.close()

    def _each(self, ask: Callable[[str], object]) -> None:
        """Ask all at the same time. Raises ``ServiceError`` as soon as one fails."""
        threads = ThreadPoolExecutor(len(self.ranks))
        asked = [threads.submit(copy_context().run, ask, control) for control in self.ranks]
        threads.shutdown(wait=False)
        for one in wait(asked, return_when=FIRST_EXCEPTION).done:
            one.result()

    def _header(self) -> weights_pb2.BroadcastHeader:
        wire = {name: number for number, name in DTYPES.items()}
        return weights_pb2.BroadcastHeader(
            weights=weights_pb2.WeightHeader(
                version=self.weights.version, size=len(self.weights.blob), sha256=self.weights.sha256, force=True
            ),
            tensors=[
                weights_pb2.BroadcastTensor(
                    name=one.name, dtype=wire[str(one.dtype).removeprefix("torch.")], shape=one.shape
                )
                for one in self._source.metadata()
            ],
            **self._place,
        )


class _Broadcast:
    """One version of ``size`` bytes on its way to one replica, until ``stack`` is closed."""

    def __init__(self, control: str, size: int, stack: ExitStack) -> None:
        self._control = control
        self._words: SimpleQueue[weights_pb2.ReceiveBroadcastRequest | None] = SimpleQueue()
        channel = stack.enter_context(connect(control))
        stub = weights_pb2_grpc.WeightServiceStub(channel)
        self._answers = stub.ReceiveBroadcast(iter(self._words.get, None), timeout=transfer_seconds(size))
        stack.callback(self._words.put, None)

    def say(self, request: weights_pb2.ReceiveBroadcastRequest) -> None:
        """Return when the replica has answered. Raises ``ServiceError``."""
        self._words.put(request)
        with explained("policy weight", self._control):
            next(self._answers)


def _own_address(peer: str) -> str:
    """The address (IPv4) by which a peer reaches this machine: the one that packets to it leave from."""
    host, _, port = peer.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])

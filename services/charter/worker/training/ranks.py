"""The processes of one run ("ranks"), started by torchrun: each holds a part of the models and does a part of the work.

Parameters, gradients and Adam's moments are sharded by FSDP2 (Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277; the
idea is that of Rajbhandari et al. 2020, "ZeRO", arXiv 1910.02054). One process alone is a whole run: then nothing here
changes anything.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from charter.inference.local.cpu_memory import give_back_freed_memory

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

# Between two pieces of work rank 0 may sample, judge or wait for a service for as long as it takes.
_PATIENCE = timedelta(days=365)
_PR_SET_PDEATHSIG = 1


class LeaderStopped(Exception):  # noqa: N818 (it is not an error)
    """Rank 0 broke off what the ranks were doing together; why, is its cause there."""


class _World:
    """What is made once when the ranks meet."""

    store: c10d.Store
    # For objects that ranks tell each other; tensors go over the default group.
    objects: dist.ProcessGroup | None = None
    mesh: DeviceMesh


def join() -> None:
    """Meet the other processes, if torchrun started more than this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    # When torchrun is killed nobody else would end its processes.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(device())
    _World.store, place, count = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=c10d.PrefixStore("charter", _World.store),
        rank=place,
        world_size=count,
    )
    _World.objects = dist.new_group(backend="gloo", timeout=_PATIENCE)
    _World.mesh = init_device_mesh("cuda" if on_gpu else "cpu", (count,))


def leave() -> None:
    """Part from the others when all have done their work."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Place of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def objects() -> dist.ProcessGroup | None:
    """The group for what is not sums of tensors; None for one process."""
    return _World.objects


def device() -> torch.device:
    """Where this process computes: its GPU of the node, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def use_cores() -> None:
    """Compute with all cores that this process may use, shared with the other ranks of its node."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def broadcast(message: Any) -> Any:
    """What rank 0 gives, on every rank. Waits for it without limit."""
    box = [message]
    dist.broadcast_object_list(box, src=0, group=_World.objects)
    return box[0]


def from_rank_zero(ask: Callable[[], T]) -> T:
    """What rank 0 finds out alone, on every rank. Where it raises, every rank raises ``LeaderStopped`` instead."""
    if size() == 1:
        return ask()
    if rank() > 0:
        stopped, answer = broadcast(None)
        if stopped:
            raise LeaderStopped
        result: T = answer
        return result
    try:
        result = ask()
    except BaseException as error:
        broadcast((True, None))
        raise LeaderStopped from error
    broadcast((False, result))
    return result


def collect(value: T) -> list[T]:
    """What each rank gives, in their order."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_World.objects)
    return values


def first_failure(text: str) -> str:
    """The ``text`` that any rank has given first, once for the whole run: why it failed."""
    return str(_World.store.compare_set("failed", "", text).decode())


def total(values: Tensor) -> Tensor:
    """Sum over the ranks, in place; ``values`` is on the CPU and has the same shape on each."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def share(groups: Sequence[list[int]]) -> Iterator[tuple[list[int], bool]]:
    """This rank's part of the groups of rows of a batch: as many on each rank, because every forward pass needs all.

    Where they do not come out even, groups are split. With fewer rows than ranks a group stands in, marked by False: it
    is computed and must not count.
    """
    parts = list(groups)
    while len(parts) % size() and (longest := max(parts, key=len))[1:]:
        parts.remove(longest)
        parts += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
    for start in range(0, len(parts), size()):
        place = start + rank()
        yield (parts[place], True) if place < len(parts) else (parts[start], False)


def load_sharded(
    load: Callable[[torch.device], M],
    place: torch.device,
    parts: Callable[[M], Iterable[nn.Module]] = lambda model: [model],
) -> M:
    """Load a model and give each rank its shard of it; what is sharded must be used by calling it.

    The ranks of a node take turns, so that it holds only one whole model at a time, in the host's memory.

    Args:
        load: to a device.
        place: where a rank that is alone keeps it; shards are where the rank computes.
        parts: those of the loaded model that are called and sharded; the rest stays whole on each rank.
    """
    if size() == 1:
        return load(place)
    mine = int(os.environ.get("LOCAL_RANK", "0"))
    loaded: list[M] = []
    for turn in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
        if turn == mine:
            loaded.append(load(torch.device("cpu")))
            # Loading has it kept, which is right for models that are whole.
            give_back_freed_memory()
            for part in parts(loaded[0]):
                _shard(part)
        dist.barrier(group=_World.objects)
    return loaded[0].to(device())


def _shard(module: nn.Module) -> None:
    """Shard the layers one by one and the rest together; gradients are summed, for losses are means over all ranks."""
    for layer in [one for one in module.modules() if isinstance(one, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=_World.mesh)
    fully_shard(module, mesh=_World.mesh, reshard_after_forward=True)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            # Gloo knows no other reduction.
            part.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, or the tensor itself where it is whole; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors put together from their shards, on the CPU of rank 0; nothing on other ranks."""
    if size() == 1:
        return tensors
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            gathered[name] = full.cpu()
    return gathered


def parameter_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, list[nn.Parameter]]]:
    """Groups for an optimizer, whose fused steps do not mix sharded and whole parameters."""
    by_kind: dict[bool, list[nn.Parameter]] = {}
    for one in parameters:
        by_kind.setdefault(isinstance(one, DTensor), []).append(one)
    return [{"params": group} for group in by_kind.values()]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum over the ranks the gradients of parameters that are not sharded; FSDP2 has done it for those that are."""
    if size() == 1:
        return
    for one in parameters:
        if one.grad is not None and not isinstance(one.grad, DTensor):
            dist.all_reduce(one.grad)


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> float:
    """Scale the gradients so that their norm over all ranks is at most ``most``; returns the norm before.

    Parameters that are not sharded have the same gradient on each rank.
    """
    learning = [one for one in parameters if one.grad is not None]
    if size() == 1:
        return float(nn.utils.clip_grad_norm_(learning, most))
    gradients = [one.grad for one in learning if one.grad is not None]
    sharded = nn.utils.get_total_norm([one.to_local() for one in gradients if isinstance(one, DTensor)])
    replicated = nn.utils.get_total_norm([one for one in gradients if not isinstance(one, DTensor)])
    norm = float((total(sharded.cpu().double().square()) + replicated.cpu().double().square()).sqrt())
    for one in gradients:
        # As torch's own: a norm that is not finite leaves nothing finite, and the caller looks at it.
        local(one).mul_(min(1.0, most / (norm + 1e-6)))
    return norm

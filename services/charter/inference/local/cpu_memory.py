"""Memory of tensors on a CPU: kept for the next tensor, or given back to the system where there must be little."""

import ctypes
import platform
from pathlib import Path

import psutil  # type: ignore[import-untyped]

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MOST_KEPT = 1 << 30
# Smaller ones are written too often for new pages each time.
_LEAST_GIVEN_BACK = 8 << 20
# What a container may use and uses, by cgroups of version 2 and 1. Without a limit the file is missing, or says a word,
# or a number beyond all memory.
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def free_memory() -> int:
    """Bytes of main memory that this process could take: those free on the machine, and in its container."""
    free = [int(psutil.virtual_memory().available)]
    for limit, used in _CGROUPS:
        if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
            free.append(int(most) - int(used.read_text()))
    return max(0, min(free))


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory, in one arena for all threads; elsewhere nothing is changed.

    As it comes, glibc maps large tensors anew each time, and every page of theirs costs a fault when it is first
    written: a sixth of a forward pass over a thousand tokens.
    """
    _set_allocator(threshold=_MOST_KEPT)


def give_back_freed_memory() -> None:
    """Let glibc give the memory of each tensor from 8 MiB back when it is freed; elsewhere nothing is changed.

    Otherwise it keeps what is freed below something that is still used. Layers that are put together from the shards
    of all ranks and freed again leave such gaps: they held more than a whole model.
    """
    _set_allocator(threshold=_LEAST_GIVEN_BACK)


def trim_freed_memory() -> None:
    """Have glibc give all memory that is free now back to the system; elsewhere nothing is done.

    Meant for the end of work that needed much more than what comes next: what is kept serves the former only.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _set_allocator(threshold: int) -> None:
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, threshold), (_M_TRIM_THRESHOLD, threshold)):
        mallopt(parameter, value)

"""Ranks as processes of this machine, forked from one that has imported everything: the imports take the most time."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from charter.worker.training import ranks

from tests.support import learners
from tests.support.ports import free_ports

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([learners.__name__])


@contextmanager
def started(size: int, work: Callable[..., None], *arguments: Any) -> Iterator[list[BaseProcess]]:
    """So many processes that call ``work``, told by their environment that they are ranks; killed at the end."""
    (port,) = free_ports(1)
    processes: list[BaseProcess] = [
        _PROCESSES.Process(target=_rank, args=(rank, size, port, work, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def on_ranks(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Have so many ranks meet and call ``work``, which must be importable; all must end well."""
    with started(size, _meet_and_work, work, arguments) as processes:
        for process in processes:
            process.join(600)
        assert [process.exitcode for process in processes] == [0] * size


def _rank(rank: int, size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """What torchrun tells a process, and its work."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    work(*arguments)


def _meet_and_work(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    ranks.join()
    ranks.use_cores()
    work(*arguments)
    ranks.leave()

"""Who does what where several ranks train: rank 0 runs the run, and has the others do with it what needs all of them.

Rank 0 alone speaks to the services, reports, and writes the run's folder. What needs all ranks is a function that every
rank calls with the same arguments. An error on any rank ends all of them.
"""

import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from charter.worker.errors import RunError
from charter.worker.reporter import Reporter
from charter.worker.training import ranks
from charter.worker.training.trainable import Trainable

logger = logging.getLogger("charter.worker")

P = ParamSpec("P")
S = TypeVar("S")
L = TypeVar("L", bound=Trainable)
T = TypeVar("T")


class _First(Enum):
    """What comes before the arguments of a call."""

    # Nothing: it makes the learner that the rank keeps.
    NOTHING = auto()
    # The rank's learner.
    LEARNER = auto()
    # What only rank 0 has; None on the others.
    RANK_ZERO = auto()


@dataclass(frozen=True, slots=True)
class _Work:
    """What every rank is to call, and the random state that it begins with."""

    call: Callable[..., Any]
    first: _First
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    random_state: torch.Tensor


class Leader:
    """Rank 0's hold on all ranks; ``end`` it at the end. ``reporter`` hears of a signal that another rank got."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._learner: Trainable | None = None
        # An error that the others do not know of: they wait in the middle of something.
        self._lost = False

    def hold(self, make: Callable[P, L], *arguments: P.args, **named: P.kwargs) -> L:
        """Have every rank make its learner and keep it for ``with_learner``; returns that of rank 0."""
        learner: L = self._do((), _Work(make, _First.NOTHING, arguments, named, torch.get_rng_state()))
        self._learner = learner
        return learner

    def release(self) -> None:
        """Have every rank let go of its learner: the next one needs the memory."""
        self._do((), _Work(_nothing, _First.NOTHING, (), {}, torch.get_rng_state()))
        self._learner = None

    def with_learner(self, call: Callable[Concatenate[L, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """Have every rank call this with its learner; returns what it gives on rank 0."""
        work = _Work(call, _First.LEARNER, arguments, named, torch.get_rng_state())
        result: T = self._do((self._learner,), work)
        return result

    def on_all_ranks(
        self, call: Callable[Concatenate[S | None, P], T], of_rank_zero: S, *arguments: P.args, **named: P.kwargs
    ) -> T:
        """As ``with_learner``, without it; ``of_rank_zero`` stays on rank 0, others call with None instead."""
        result: T = self._do((of_rank_zero,), _Work(call, _First.RANK_ZERO, arguments, named, torch.get_rng_state()))
        return result

    def end(self, status: int) -> None:
        """Every rank ends with this exit status."""
        if ranks.size() == 1 or self._lost:
            return
        try:
            ranks.broadcast(status)
            ranks.leave()
        except RuntimeError as error:
            logger.warning("%s", _reason(error))

    def _do(self, first: tuple[Any, ...], work: _Work) -> Any:
        if ranks.size() == 1:
            return work.call(*first, *work.arguments, **work.named)
        try:
            ranks.broadcast(work)
            result = work.call(*first, *work.arguments, **work.named)
            self._hear_of_signals()
        except ranks.LeaderStopped as stopped:
            self._hear_of_signals()
            raise stopped.__cause__ or stopped from None
        except BaseException as error:
            self._lost = True
            reason = _reason(error)
            cause = _failed_first(reason)
            if cause != reason or _lost_touch(error):
                raise RunError(cause) from error
            raise
        return result

    def _hear_of_signals(self) -> None:
        if any(ranks.collect(False)):
            self._reporter.stop()


def _nothing() -> None:
    """In the place of a learner."""


def follow() -> int | None:
    """Call what rank 0 has every rank call, until it ends; its exit status, or None when something went wrong."""
    asked_to_stop = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    # Rank 0 decides: it saves what there is first.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    learner: Trainable | None = None
    try:
        while True:
            order: _Work | int = ranks.broadcast(None)
            if isinstance(order, int):
                ranks.leave()
                return order
            torch.set_rng_state(order.random_state)
            try:
                first: tuple[Any, ...] = {_First.NOTHING: (), _First.LEARNER: (learner,), _First.RANK_ZERO: (None,)}[
                    order.first
                ]
                result = order.call(*first, *order.arguments, **order.named)
                if order.first is _First.NOTHING:
                    learner = result
            except ranks.LeaderStopped:
                # Its traceback would keep the models of what was broken off.
                pass
            ranks.collect(asked_to_stop)
    except BaseException as error:
        reason = _reason(error)
        # The others only lose touch with the rank where it went wrong, and need not say so.
        if _failed_first(reason) == reason:
            logger.error("%s", reason, exc_info=not isinstance(error, RunError))
        return None


def _reason(error: BaseException) -> str:
    if isinstance(error, RunError):
        return str(error)
    if _lost_touch(error):
        return (
            f"rank {ranks.rank()} has lost touch with another process of the run, which was killed (out of memory?) "
            "or whose node is gone; the end of its log says more. Then resume the run from its last checkpoint"
        )
    return f"rank {ranks.rank()}: {type(error).__name__}: {error}"


def _lost_touch(error: BaseException) -> bool:
    """Whether it is the connection to another rank that failed."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _failed_first(reason: str) -> str:
    """Why the rank failed that was the first to fail: this reason, unless another was faster."""
    try:
        return ranks.first_failure(reason)
    except dist.DistError:
        # The node that keeps it is gone.
        return reason

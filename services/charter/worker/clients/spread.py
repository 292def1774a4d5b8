"""Spreads the items of one request over replicas, so that none is lost and none counts twice.

Every item goes to the ready replica with the least outstanding tokens. What a replica fails to deliver goes to the
others. A replica that has nothing left to do takes over a part of what the one that is farthest behind still owes, by
how much the two have delivered so far; whichever delivers an item first counts, and a call that owes nothing any more
is cancelled. So a slow or hung replica delays the end by little, and needs no time limit to be found out.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc

from charter.rpc.channel import BATCH
from charter.rpc.errors import ServiceError, explained
from charter.rpc.stalled import unless_stalled
from charter.worker import metrics
from charter.worker.clients.patience import AWAY, MOST_FAULTS
from charter.worker.clients.replica import Replica
from charter.worker.clients.replicas import Replicas
from charter.worker.errors import Cancelled, RunError

T = TypeVar("T")

_CHARACTERS_A_TOKEN = 4
# Replicas that may work on the same item at the same time.
_MOST_HOLDERS = 3
# An item that nobody else works on may end in one of these ``MOST_FAULTS`` times; the last is silence for too long.
_FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """What to ask for, and how.

    ``costs`` are the tokens that each item may take; each has ``parts`` results. ``ask`` begins the call for some items
    (by index) on a channel, ``read`` turns a response to these items by a replica into (item, part, result); what it
    raises ends everything. With ``behind``, FAILED_PRECONDITION means that a replica lacks weights, not that the
    request is wrong. A call that gives nothing for ``silence_seconds`` is given up. An item that nobody else works on
    may lose its replica ``most_losses`` times: often, for kill -9 and rolling updates are no fault of the item.
    """

    costs: Sequence[int]
    parts: int
    ask: Callable[[grpc.Channel, Sequence[int]], Any]
    read: Callable[[Sequence[int], Replica, Any], tuple[int, int, T]]
    behind: bool = False
    silence_seconds: float = BATCH
    most_losses: int = 20


@dataclass(eq=False)
class _Call:
    """One call under way for ``items``."""

    replica: Replica
    items: list[int]
    stream: Any = None
    # Others have delivered everything that it was for.
    needless: bool = False
    future: Future[None] = field(default_factory=Future)


def tokens_of(*texts: str) -> int:
    """About how many tokens texts have, where only the load of a replica is estimated."""
    return 1 + sum(len(text) for text in texts) // _CHARACTERS_A_TOKEN


def spread(replicas: Replicas, work: Work[T], broken_off: threading.Event | None = None) -> list[list[T]]:
    """Results, [items][parts].

    While no replica is ready it waits, and the run says so. Raises ``ServiceError`` when a replica refuses the request
    or breaks on it again and again, ``Cancelled`` soon after ``replicas.break_off(broken_off)``, and whatever
    ``work.read`` raises.
    """
    threads = ThreadPoolExecutor(thread_name_prefix=f"{replicas.service}-call", max_workers=256)
    one = _Spread(replicas, work, threads, broken_off)
    try:
        return one.run()
    finally:
        one.cancel()
        threads.shutdown()


class _Spread(Generic[T]):
    def __init__(
        self, replicas: Replicas, work: Work[T], threads: ThreadPoolExecutor, broken_off: threading.Event | None
    ) -> None:
        self._replicas = replicas
        self._broken_off = broken_off
        self._work = work
        self._threads = threads
        self._pending = list(range(len(work.costs)))
        self._results: list[dict[int, T]] = [{} for _ in work.costs]
        # Calls that work on each item, the latest last: that one answers for it.
        self._holders: list[list[_Call]] = [[] for _ in work.costs]
        self._faults = [0] * len(work.costs)
        self._losses = [0] * len(work.costs)
        self._calls: set[_Call] = set()
        # Tokens, as estimated, that each replica has delivered.
        self._delivered: dict[Replica, int] = {}
        self._error: BaseException | None = None
        # Since a replica last did more than refuse for having too much to do; and what the last one said that did so.
        self._patience = replicas.patience()
        self._overloaded = ""

    def run(self) -> list[list[T]]:
        """Until every item has its results."""
        while True:
            with self._replicas.changed:
                while not self._finished():
                    if self._broken_off is not None and self._broken_off.is_set():
                        raise Cancelled
                    if self._error is not None:
                        raise self._error
                    ready = self._replicas.ready()
                    awake = [one for one in ready if one.paused_until <= time.monotonic()]
                    self._assign(awake)
                    pauses = [one.paused_until - time.monotonic() for one in ready if one not in awake]
                    if not self._calls:
                        break
                    self._replicas.changed.wait(max(0.0, min(pauses)) if pauses else None)
                else:
                    return [[found[part] for part in range(self._work.parts)] for found in self._results]
            if not ready:
                self._replicas.wait_ready(self._broken_off)
                continue
            # All that are ready have asked not to be called yet.
            self._patience.check(self._overloaded)
            with self._replicas.changed:
                self._replicas.changed.wait(max(0.0, min([1.0, *pauses])))

    def cancel(self) -> None:
        """Break off what is still under way."""
        with self._replicas.changed:
            for call in self._calls:
                call.needless = True
                if call.stream is not None:
                    call.stream.cancel()

    def _finished(self) -> bool:
        return all(len(found) == self._work.parts for found in self._results)

    def _open(self, item: int) -> bool:
        return len(self._results[item]) < self._work.parts

    def _assign(self, replicas: list[Replica]) -> None:
        """Hand out what is pending; give idle replicas a part of what others owe."""
        if not replicas:
            return
        shares: dict[Replica, list[int]] = {replica: [] for replica in replicas}
        owed = {replica: sum(self._work.costs[item] for item in self._owed_by(replica)) for replica in replicas}
        for item in self._pending:
            replica = min(owed, key=lambda one: owed[one])
            shares[replica].append(item)
            owed[replica] += self._work.costs[item]
        self._pending = []
        for replica, items in shares.items():
            if items:
                self._start(replica, items)
        for replica in replicas:
            if not any(call.replica is replica for call in self._calls):
                self._take_over(replica)

    def _owed_by(self, replica: Replica) -> list[int]:
        """Open items that a replica answers for."""
        return [
            item
            for item, holders in enumerate(self._holders)
            if holders and holders[-1].replica is replica and self._open(item)
        ]

    def _take_over(self, idle: Replica) -> None:
        """Ask an idle replica for a part of what the one farthest behind owes, from the end of its list."""
        behind, most, longest = idle, list[int](), 0.0
        for busy in {call.replica for call in self._calls}:
            owed = [
                item
                for item in self._owed_by(busy)
                if len(self._holders[item]) < _MOST_HOLDERS
                and all(call.replica is not idle for call in self._holders[item])
            ]
            time_left = sum(self._work.costs[item] for item in owed) / max(1, self._delivered.get(busy, 0))
            if time_left > longest:
                behind, most, longest = busy, owed, time_left
        if most:
            mine, theirs = self._delivered.get(idle, 0), self._delivered.get(behind, 0)
            # One that has just come back has delivered nothing yet.
            share = mine / (mine + theirs) if mine else 0.5
            taken = most[-max(1, round(share * len(most))) :]
            metrics.REASSIGNED.labels(self._replicas.service, "slow").inc(len(taken))
            self._start(idle, taken)

    def _start(self, replica: Replica, items: list[int]) -> None:
        call = _Call(replica, items)
        self._calls.add(call)
        for item in items:
            self._holders[item].append(call)
        call.future = self._threads.submit(copy_context().run, self._follow, call)
        call.future.add_done_callback(lambda future: self._ended(call, future.exception()))

    def _follow(self, call: _Call) -> None:
        """Read a call to its end, on a thread of its own."""
        with explained(self._replicas.service, call.replica.address.main):
            with self._replicas.changed:
                if call.needless:
                    return
                call.stream = self._work.ask(call.replica.channel, call.items)
            for response in unless_stalled(call.stream, self._work.silence_seconds):
                item, part, result = self._work.read(call.items, call.replica, response)
                with self._replicas.changed:
                    self._deliver(call.replica, item, part, result)

    def _deliver(self, replica: Replica, item: int, part: int, result: T) -> None:
        """Keep a result unless another replica was faster; the caller holds the condition."""
        if part in self._results[item]:
            return
        self._results[item][part] = result
        self._patience.renew()
        if self._open(item):
            return
        self._delivered[replica] = self._delivered.get(replica, 0) + self._work.costs[item]
        for call in self._holders[item]:
            if not any(self._open(other) for other in call.items) and not call.needless:
                call.needless = True
                if call.stream is not None:
                    call.stream.cancel()
        self._replicas.changed.notify_all()

    def _ended(self, call: _Call, error: BaseException | None) -> None:
        """Settle a call: what it leaves open, and nobody else works on, is pending again."""
        with self._replicas.changed:
            self._calls.discard(call)
            left = [item for item in call.items if self._open(item)]
            for item in left:
                self._holders[item].remove(call)
            if left and error is None and not call.needless:
                error = RunError(
                    f"the {self._replicas.service} service at {call.replica.address.main} left out {len(left)} of "
                    f"{len(call.items)} results; see its log"
                )
            if error is None or call.needless:
                call.replica.failed_calls = 0
            else:
                orphaned = [item for item in left if not self._holders[item]]
                self._blame(call.replica, orphaned, error)
                self._pending += orphaned
            self._replicas.changed.notify_all()

    def _blame(self, replica: Replica, orphaned: list[int], error: BaseException) -> None:
        """Pause a replica, take it out, or give up, as its error says; nobody else works on the orphaned items."""
        if not isinstance(error, ServiceError):
            self._error = self._error or error
            return
        reason = "failed"
        if error.code == grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_seconds is not None:
            # Not a fault: it has more to do than it takes on, and says when to ask again.
            reason = "overloaded"
            replica.paused_until = time.monotonic() + error.retry_after_seconds
            self._overloaded = str(error)
        elif self._work.behind and error.code == grpc.StatusCode.FAILED_PRECONDITION:
            self._replicas.failed(replica, error)
        elif error.code in AWAY:
            self._count(self._losses, orphaned, self._work.most_losses, error)
            self._replicas.failed(replica, error)
        elif error.code in _FAULTS:
            self._count(self._faults, orphaned, MOST_FAULTS, error)
            self._replicas.failed(replica, error)
        else:
            self._error = self._error or error
        if reason != "overloaded":
            self._patience.renew()
        metrics.REASSIGNED.labels(self._replicas.service, reason).inc(len(orphaned))

    def _count(self, times: list[int], orphaned: list[int], most: int, error: ServiceError) -> None:
        """Count what became of items in ``times``; the error ends everything when it was too often for one of them."""
        for item in orphaned:
            times[item] += 1
        if any(times[item] >= most for item in orphaned):
            details = f"{error.details}; this happened {most} times with the same part of the request"
            again = ServiceError(error.service, error.address, error.code, details)
            self._error = self._error or again

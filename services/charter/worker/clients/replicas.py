"""The replicas of one service as the worker sees them: found, kept at the newest weights, and known to be ready or not.

Each replica has a keeper, a thread that looks at it, sends it the newest weights where it lacks them, and tries again,
with growing pauses, whatever goes wrong. A replica that is late, dead or restarted therefore catches up by itself while
the others work. It takes calls only while it is ``ready``.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import grpc

from charter.rpc.channel import QUICK, connect
from charter.rpc.discovery import ReplicaAddress, all_addresses, stands_for_many
from charter.rpc.errors import ServiceError
from charter.weights.relay_tree import relays
from charter.weights.sender import PackedWeights
from charter.worker import metrics
from charter.worker.clients.own_weights import Held, OwnWeights
from charter.worker.clients.patience import Patience
from charter.worker.clients.replica import Replica, State, ask_all
from charter.worker.clients.sleeper import send_to_sleep, wake_at_the_end, wake_up
from charter.worker.errors import Cancelled, RunError
from charter.worker.reporter import Reporter

T = TypeVar("T")

logger = logging.getLogger("charter.worker")

# Pause before a replica that failed is looked at again: doubled up to the longest, up to half of it cut at random.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
# How often a name is resolved again.
_RESOLVE_SECONDS = 10.0
# Replicas that are still busy with new weights when the first has them get as long again, and at least this.
_LEAST_GRACE_SECONDS = 1.0
# How often all replicas are asked for what none of them answers.
_MOST_TRIES = 20
# Answers of a replica that no waiting changes.
_FINAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)


class Replicas:
    """All replicas of a service. ``close`` at the end.

    ``addresses`` are (main, control) as in the spec; control is empty for a service that takes no weights.
    ``health_name`` is the gRPC service that must be SERVING. While nothing can go on, ``reporter`` is told so and asked
    whether to stop, and after ``max_wait_seconds`` the run ends. With ``sleeps`` the replica shares the worker's GPU:
    its keeper also wakes it after ``sleep``.
    """

    def __init__(
        self,
        service: str,
        addresses: Sequence[tuple[str, str]],
        health_name: str,
        reporter: Reporter,
        *,
        max_wait_seconds: float,
        takes_weights: bool = False,
        sleeps: bool = False,
    ) -> None:
        self.service = service
        # Notified whenever a replica changes, by every user of the replicas too.
        self.changed = threading.Condition()
        self._addresses = addresses
        self._health_name = health_name
        self._reporter = reporter
        self._max_wait_seconds = max_wait_seconds
        self._takes_weights = takes_weights
        self._sleeps = sleeps
        self._asleep = False
        # Held while memory changes hands, so that no keeper wakes what has just been put to sleep.
        self._memory = threading.Lock()
        self._replicas: dict[ReplicaAddress, Replica] = {}
        self._weights = OwnWeights(service)
        self._fault: Exception | None = None
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._find()
        if any(stands_for_many(main) for main, _ in addresses):
            self._start(self._keep_finding, "find")

    def close(self) -> None:
        """Stop the keepers, wake what sleeps, and close every channel."""
        self._closed.set()
        with self.changed:
            replicas = list(self._replicas.values())
        for replica in replicas if self._asleep else ():
            if problem := wake_at_the_end(self.service, replica.address.control):
                logger.warning("left asleep", extra={"service": self.service, "reason": problem})
        for replica in replicas:
            replica.wake.set()
        for thread in self._threads:
            thread.join(QUICK)
        for replica in replicas:
            replica.channel.close()

    def sleep(self) -> None:
        """Free the replicas' GPU memory until ``wake`` or ``serve``. Raises ``ServiceError`` when one cannot."""
        with self._memory:
            with self.changed:
                self._asleep = True
                replicas = list(self._replicas.values())
                for replica in replicas:
                    self._put_out(replica, "it sleeps.")
            for replica in replicas:
                send_to_sleep(self.service, replica.address.control)

    def wake(self) -> None:
        """See to it that the replicas are awake; waits as ``wait_ready`` does."""
        if not self._asleep:
            return
        with self.changed:
            self._wake_keepers()
        self.wait_ready()

    def _wake_keepers(self) -> None:
        for replica in self._replicas.values():
            # What is out for another reason than sleep stays out until its keeper has looked.
            if self._asleep or replica.state is not State.OUT:
                replica.begin_update()
            replica.wake.set()
        self._asleep = False

    def ready(self) -> list[Replica]:
        """Those that take calls; the caller holds ``changed``. Raises what no waiting can mend."""
        if self._fault is not None:
            raise self._fault
        return [replica for replica in self._replicas.values() if replica.ready]

    def contacted(self) -> list[Replica]:
        """Replicas that answered, once each was tried; waits as ``wait_ready`` does while none has."""
        found: list[Replica] = []

        def some_answer() -> bool:
            self.ready()
            replicas = self._replicas.values()
            tried = all(one.state is not State.UNTRIED for one in replicas)
            found[:] = [one for one in replicas if one.state is not State.OUT] if tried else []
            return bool(found)

        self._wait_for(some_answer)
        return found

    def serve(self, weights: PackedWeights, broadcast: Callable[[dict[str, int]], None] | None = None) -> None:
        """Have every replica serve these weights from now on, all at once; returns when the step can go on.

        That is when all have them, or when one has them and the others had as long again. Waits, and says so, while no
        replica can be reached. ``broadcast`` gives them to the replicas that are ready, by control port and number of
        NCCL ranks; whoever lacks them afterwards gets them as always. Raises ``ServiceError`` when a replica refuses
        them, and what ``broadcast`` does.
        """
        start = time.monotonic()
        with self.changed:
            self._weights.add(weights)
            # Adapters are small, what lies in a folder or is broadcast need not be passed on, one GPU loads in turn.
            whole = weights.base is None and not (weights.path or self._sleeps or broadcast)
            well = [one.address.control for one in self._replicas.values() if one.state is not State.OUT]
            tree = relays(well) if whole else {}
            for replica in self._replicas.values():
                replica.relay = tree.get(replica.address.control, "")
            ranks = {one.address.control: one.nccl_ranks for one in self._replicas.values() if one.ready}
        if broadcast is not None and (members := {control: count for control, count in ranks.items() if count}):
            broadcast(members)
        with self.changed:
            self._wake_keepers()
        self.wait_ready()
        late_after = time.monotonic() + max(time.monotonic() - start, _LEAST_GRACE_SECONDS)
        with self.changed:
            while any(one.state in (State.UNTRIED, State.UPDATING) for one in self._replicas.values()):
                left = late_after - time.monotonic()
                if left <= 0:
                    logger.warning("going on without late replicas", extra={"service": self.service})
                    break
                self.ready()
                self.changed.wait(left)

    @property
    def version(self) -> int | None:
        """What this process has sent last; None before that."""
        return self._weights.newest.version if self._weights.newest is not None else None

    def break_off(self, event: threading.Event) -> None:
        """Set the event that a ``spread`` or a ``wait_ready`` on another thread was given, and wake it up."""
        with self.changed:
            event.set()
            self.changed.notify_all()

    def wait_ready(self, broken_off: threading.Event | None = None) -> None:
        """Return when a replica is ready; says what it waits for.

        Raises ``Cancelled``, also after ``break_off``, and ``WaitedTooLongError``.
        """
        self._wait_for(lambda: bool(self.ready()), broken_off)

    def _wait_for(self, enough: Callable[[], bool], broken_off: threading.Event | None = None) -> None:
        patience = self.patience()
        while True:
            with self.changed:
                if broken_off is not None and broken_off.is_set():
                    raise Cancelled
                if enough():
                    return
                self.changed.wait(1.0)
                self.ready()
                nothing = all(one.state is State.OUT for one in self._replicas.values())
                message = self._none_usable()
            self._reporter.raise_if_stopped()
            if nothing:
                patience.check(message)

    def patience(self) -> Patience:
        """A wait for this service that begins now."""
        return Patience(self.service, self._reporter, self._max_wait_seconds)

    def failed(self, replica: Replica, error: ServiceError) -> None:
        """Take a replica out after a failed call, until its keeper finds it well; the caller holds ``changed``."""
        replica.failed_calls += 1
        self._put_out(replica, str(error))
        replica.wake.set()

    def each(self, ask: Callable[[Replica], T]) -> list[T]:
        """What every ready replica answers, asked at the same time; one that fails is left to its keeper.

        Raises ``ServiceError`` for an answer that no waiting changes.
        """
        return self._each(ask)[0]

    def some(self, ask: Callable[[Replica], T]) -> list[T]:
        """As ``each``, again while none answers; waits as ``wait_ready``.

        Raises ``ServiceError`` when all have failed again and again.
        """
        failed = 0
        while True:
            answers, errors = self._each(ask)
            if answers:
                return answers
            failed += bool(errors)
            if failed == _MOST_TRIES:
                raise errors[0]
            self.wait_ready()

    def _each(self, ask: Callable[[Replica], T]) -> tuple[list[T], list[ServiceError]]:
        """The answers, and what became of those that gave none."""
        with self.changed:
            ready = self.ready()
        answers, failed = ask_all(ready, ask)
        with self.changed:
            for replica, error in failed:
                if error.code in _FINAL:
                    raise error
                self.failed(replica, error)
        return answers, [error for _, error in failed]

    def check_own(self) -> None:
        """Look at every ready replica again. Raises ``RunError`` when one holds weights that this run never sent.

        One that has restarted meanwhile is taken out and brought up to date.
        """

        def check(replica: Replica) -> None:
            held, _ = self._held(replica)
            if not self._weights.sent(held):
                with self.changed:
                    self._put_out(replica, f"the {self.service} service at {replica.address.main} has restarted.")
                    replica.wake.set()
                self._weights.require(replica, held)

        self.each(check)

    def _find(self) -> None:
        """Add new replicas, drop those that a name does not stand for any more."""
        listed, complete = all_addresses(self._addresses)
        with self.changed:
            for address in [one for one in listed if one not in self._replicas]:
                replica = Replica(address, connect(address.main))
                self._replicas[address] = replica
                self._start(partial(self._keep, replica), address.main)
            for address in self._replicas.keys() - listed if complete else ():
                replica = self._replicas[address]
                if not replica.ready:
                    # Its keeper ends when it sees that.
                    del self._replicas[address]
                    replica.wake.set()
            self._count()
            self.changed.notify_all()

    def _keep_finding(self) -> None:
        while not self._closed.wait(_RESOLVE_SECONDS if self._replicas else 1.0):
            self._find()

    def _keep(self, replica: Replica) -> None:
        """Life of a keeper."""
        while not self._closed.is_set() and self._replicas.get(replica.address) is replica:
            replica.wake.clear()
            try:
                with self._memory if self._sleeps else nullcontext():
                    if not self._asleep:
                        self._bring_up(replica)
            except (ServiceError, RunError) as error:
                self._note_failure(replica, error)
            else:
                # Until there are new weights, a call has failed, or the end has come.
                replica.wake.wait()
            if failures := replica.failed_looks + replica.failed_calls:
                self._closed.wait(_pause(failures))
        replica.channel.close()

    def _note_failure(self, replica: Replica, error: ServiceError | RunError) -> None:
        with self.changed:
            replica.failed_looks += 1
            self._put_out(replica, str(error))
            if isinstance(error, RunError) or error.code in _FINAL:
                self._fault = self._fault or error
            self.changed.notify_all()
        logger.warning("replica is out", extra={"service": self.service, "reason": str(error)})

    def _bring_up(self, replica: Replica) -> None:
        """Make sure that the replica holds the newest weights and takes calls, then call it ready."""
        with self.changed:
            weights, relay = self._weights.newest, replica.relay
            # Whatever goes wrong, the next attempt asks nobody else.
            replica.relay = ""
        if self._takes_weights:
            held, base = self._held(replica)
            if weights is not None and held != (weights.version, weights.sha256):
                if replica.ours:
                    self._weights.require(replica, held)
                with self.changed:
                    replica.begin_update()
                if not self._weights.send(weights, replica, base, relay):
                    # The next weights have woken this keeper.
                    return
            replica.ours = weights is not None
        if self._sleeps:
            wake_up(self.service, replica.address.control)
        replica.require_serving(self.service, self._health_name)
        with self.changed:
            if replica.failed_looks or replica.failed_calls:
                # No call uses the old one: the replica was not ready.
                replica.channel.close()
                replica.channel = connect(replica.address.main)
            # Weights that came meanwhile have woken this keeper already.
            newest = weights is self._weights.newest and (weights is not None or not self._takes_weights)
            replica.found_well(newest=newest)
            self._count()
            self.changed.notify_all()

    def _held(self, replica: Replica) -> tuple[Held, str]:
        """Version and digest that a replica serves, and the digest of what it keeps for adapters."""
        found = replica.weight_version(self.service)
        with self.changed:
            replica.info, replica.nccl_ranks = found.model, found.nccl_ranks
        return (found.model.weight_version, found.model.weight_digest), found.base_sha256

    def _put_out(self, replica: Replica, problem: str) -> None:
        replica.put_out(problem)
        self._count()

    def _none_usable(self) -> str:
        if not self._replicas:
            return (
                f"no address of the {self.service} service is known: {', '.join(main for main, _ in self._addresses)}."
            )
        problem = next((one.problem for one in self._replicas.values() if one.state is State.OUT), "")
        if len(self._replicas) == 1:
            return problem
        count = len(self._replicas)
        return f"none of {count} replicas of the {self.service} service can be used, for example {problem}"

    def _count(self) -> None:
        ready = sum(one.ready for one in self._replicas.values())
        metrics.REPLICAS.labels(self.service, "true").set(ready)
        metrics.REPLICAS.labels(self.service, "false").set(len(self._replicas) - ready)

    def _start(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=copy_context().run, args=(work,), name=f"{self.service}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()


def _pause(failures: int) -> float:
    longest = min(_FIRST_PAUSE * 2.0 ** min(failures, 10), _LONGEST_PAUSE)
    return float(longest * random.uniform(0.5, 1.0))

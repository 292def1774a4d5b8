"""The weights that this run has sent to a service, which tell its replicas' own from somebody else's."""

from contextvars import copy_context
from functools import partial

from charter.rpc.errors import ServiceError
from charter.weights.sender import PackedWeights, send_packed
from charter.worker.clients.replica import Replica
from charter.worker.errors import RunError

# Version and digest of what a replica serves; version 0 is what it started with.
Held = tuple[int, str]


class OwnWeights:
    """``newest`` is what every replica of ``service`` should hold; the caller guards it."""

    def __init__(self, service: str) -> None:
        self.newest: PackedWeights | None = None
        self._service = service
        # Of the step that made them: sending them is part of its trace, whichever thread does it.
        self._sending = copy_context()
        self._sent: set[Held] = set()

    def add(self, weights: PackedWeights) -> None:
        """From now on these are the newest."""
        self.newest, self._sending = weights, copy_context()
        self._sent.add((weights.version, weights.sha256))
        if weights.base is not None:
            self._sent.add((weights.base.version, weights.base.sha256))

    def sent(self, held: Held) -> bool:
        """Whether this run has sent what a replica holds."""
        return held in self._sent

    def require(self, replica: Replica, held: Held) -> None:
        """Raise ``RunError`` unless a replica that got weights holds the run's, or none because it restarted."""
        if held not in self._sent and held[0] != 0:
            raise RunError(
                f"the {self._service} service at {replica.address.main} does not serve this run's weights any more, "
                f"but version {held[0]} of somebody else. See to it that this run has it alone, then resume the run"
            )

    def send(self, weights: PackedWeights, replica: Replica, base: str, relay: str) -> bool:
        """Send weights, and what they are for unless the replica keeps it (``base``, a digest), through ``relay``.

        False when there are newer ones by now, whatever became of these. Raises ``ServiceError``.
        """
        missing = [weights]
        if weights.base is not None and base != weights.base.sha256:
            missing = [weights.base, weights]
        send = partial(send_packed, replica.address.control, service=self._service, force=True, peer=relay)
        try:
            for one in missing:
                self._sending.copy().run(send, one)
        except ServiceError:
            if weights is self.newest:
                raise
            return False
        return True

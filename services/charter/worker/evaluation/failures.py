"""Items of an evaluation that cannot be used: counted by kind, and too many of them stop it."""

from charter.runs.results import LeftOut
from charter.worker.clients.failed import Failed
from charter.worker.errors import TooManyFailuresError

# The share is taken of so many items at least, or of all where there are fewer: a few failures at the beginning do not
# stop it.
_AT_LEAST = 1000


class FailureCount:
    """What failed of the items of one model, or of one judge.

    Args:
        what: they are, for a person: ``answers of ppo``.
        items: how many there will be in all.
        most: share of them that may fail, ``failures.max_share`` of the spec.
        earlier: those of an earlier command.
    """

    def __init__(self, what: str, items: int, most: float, earlier: LeftOut) -> None:
        self._what, self._most = what, most
        self._least = min(items, _AT_LEAST)
        self.so_far = earlier

    def add(self, failure: Failed | None) -> None:
        """Count an item. Raises ``TooManyFailuresError`` when more failed than may."""
        self.so_far += LeftOut.of(1, [failure.kind] if failure else [])
        base = max(self.so_far.items, self._least)
        if failure is not None and self.so_far.failures > self._most * base:
            raise TooManyFailuresError(
                f"{self._what}: {self.so_far.in_words()}, and failures.max_share allows {self._most:.0%} of {base}. "
                f"The last one: {failure.reason}. Mend the cause, or allow more in the spec, and give the same command "
                "again"
            )

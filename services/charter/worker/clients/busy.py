"""How long something was busy, where several pieces of work for it overlap."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyClock:
    """Seconds in which at least one piece of work was under way; from any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._under_way = 0
        self._since = 0.0
        self._total = 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A piece of work."""
        with self._lock:
            if self._under_way == 0:
                self._since = self._now()
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                if self._under_way == 0:
                    self._total += self._now() - self._since

    def seconds(self) -> float:
        """All until now."""
        with self._lock:
            return self._total + (self._now() - self._since if self._under_way else 0.0)

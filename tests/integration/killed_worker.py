"""A worker that kills itself with SIGKILL at the Nth call of a function, in whatever thread.

``python -m tests.integration.killed_worker MODULE:FUNCTION N`` and then the worker's own arguments. A generator counts
each time that it is asked for its next item.
"""

import inspect
import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from typing import Any

from charter.worker.__main__ import main


def kill_at(module: str, name: str, count: int) -> None:
    """Arm this process. ``name`` may be a method, and a name that ``module`` has imported."""
    left = count
    path, _, last = name.rpartition(".")
    owner = attrgetter(path)(import_module(module)) if path else import_module(module)
    original = getattr(owner, last)

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def ticking(items: Iterator[Any]) -> Iterator[Any]:
        tick()
        for item in items:
            yield item
            tick()

    def armed(*arguments: Any, **named: Any) -> Any:
        if inspect.isgeneratorfunction(original):
            return ticking(original(*arguments, **named))
        tick()
        return original(*arguments, **named)

    setattr(owner, last, armed)


if __name__ == "__main__":
    place, times = sys.argv[1:3]
    del sys.argv[1:3]
    in_module, function = place.split(":")
    kill_at(in_module, function, int(times))
    sys.exit(main())

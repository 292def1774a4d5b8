"""A worker as a process of its own that imports little: forked from one that has imported all this and begun nothing.

It may kill itself with SIGKILL at the Nth call of a function, in whatever thread. A generator counts each time that it
is asked for its next item.
"""

import inspect
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from operator import attrgetter
from typing import Any

from charter.environment import METRICS_PORT_VARIABLE
from charter.worker.__main__ import main


def run(arguments: Sequence[str], kill_at: tuple[str, int] | None) -> None:
    """``python -m charter.worker`` with these arguments. ``kill_at`` is MODULE:FUNCTION and N."""
    os.environ[METRICS_PORT_VARIABLE] = "0"
    sys.argv = ["charter.worker", *arguments]
    if kill_at is not None:
        place, times = kill_at
        module, _, function = place.partition(":")
        _arm(module, function, times)
    sys.exit(main())


def _arm(module: str, name: str, count: int) -> None:
    """``name`` may be a method, and a name that ``module`` has imported."""
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

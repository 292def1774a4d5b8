"""Two sides of a comparison, each a process that stays loaded and does a step when it is told to.

So what else the machine does falls on both alike; processor time does not count it at all.
"""

import json
import os
import resource
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

# Of each side, by name, what each step took.
Figures = dict[str, list[dict[str, float]]]


class Turns:
    """In a side's process: waits for its turn on stdin; ``done`` writes what the step took to stdout."""

    def __init__(self) -> None:
        self._start = self._processor = 0.0

    def wait(self) -> None:
        """Until the comparison says go. Ends the process when it says nothing more."""
        if not sys.stdin.readline():
            sys.exit(0)
        self.begin()

    def begin(self) -> None:
        """The step is measured from here, not from the beginning of its turn."""
        self._start, self._processor = time.monotonic(), time.process_time()

    def done(self, **figures: float) -> None:
        """The step is over."""
        took = {"seconds": time.monotonic() - self._start, "processor": time.process_time() - self._processor}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**took, "peak_gib": peak, **figures}), flush=True)  # noqa: T201 - the result


def as_arguments(options: Namespace, names: Sequence[str]) -> list[str]:
    """These options again, for a side's command line."""
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]


def take_turns(
    benchmark: str, arguments: Sequence[str], libraries: Path, steps: int, say: Callable[[int, Figures], None]
) -> Figures:
    """So many steps of ``charter_side`` and of ``trl_side`` of a benchmark's folder, by name, in turns.

    Each side's first step is not counted. ``say`` is given the number of each later one, and what was measured so far.
    """
    sides = {name: _Side(f"{benchmark}.{name}_side", arguments, libraries) for name in ("charter", "trl")}
    for side in sides.values():
        side.step()
    found: Figures = {name: [] for name in sides}
    for number in range(steps):
        for name, side in sides.items():
            found[name].append(side.step())
        say(number + 1, found)
    for side in sides.values():
        side.close()
    return found


class _Side:
    """In the comparison: a module that runs as a process of its own. ``libraries`` is a folder it imports from."""

    def __init__(self, module: str, arguments: Sequence[str], libraries: Path) -> None:
        path = os.pathsep.join([str(libraries), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "TRL_EXPERIMENTAL_SILENCE": "1"},
        )

    def step(self) -> dict[str, float]:
        """One step: what ``Turns.done`` said of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            # Libraries print as well.
            if line.startswith('{"seconds"'):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit(f"a side stopped with exit status {self._process.wait()}: see above")

    def close(self) -> None:
        """No more steps."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

"""Prints the lines of a lock file that some requirement files need: `python3 pins.py cpu.lock runtime.in cpu.in`.

A lock pins everything, the tools of development too; an image gets what its processes import. Who needs a package is
in the comment behind its pin ("via"), as `make lock` writes it, so nothing is resolved again.
"""

import sys
from pathlib import Path


def pins(lock: str, roots: set[str]) -> list[str]:
    """Pins that are needed by ``roots`` (names of .in files), directly or through another pin."""
    lines = [line for line in lock.splitlines() if "==" in line]
    needed_by = {line: set(line.partition("# via ")[2].split(", ")) for line in lines}
    chosen: set[str] = set()
    names = {f"-r {root}" for root in roots}
    while more := [line for line in lines if line not in chosen and needed_by[line] & names]:
        chosen.update(more)
        names.update(line.partition("==")[0].partition("[")[0] for line in more)
    return [line.partition(" #")[0].rstrip() for line in lines if line in chosen]


if __name__ == "__main__":
    file, *given = sys.argv[1:]
    sys.stdout.write("\n".join(pins((Path(__file__).parent / file).read_text(), set(given))) + "\n")

"""Numbers that only content decides: the same in every process, on every machine, for ever.

What was drawn by them is stored (splits of imported pairs, places of answers, seeds of runs that are resumed), so they
must not change.
"""

import hashlib


def stable_number(*parts: str) -> int:
    """A number in [0, 2^64): the first eight bytes of the sha256 of the parts, joined by NUL."""
    return int.from_bytes(hashlib.sha256("\x00".join(parts).encode()).digest()[:8], "big")


def stable_fraction(*parts: str) -> float:
    """A number in [0, 1)."""
    return (stable_number(*parts) >> 11) / 2**53

"""Several names as a sentence has them."""

from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
    """For example ``a, b and c``; empty for none."""
    *others, last = names or [""]
    return f"{', '.join(others)} and {last}" if others else last

"""Figures of an evaluation as cells of a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charter.evaluation.statistics import Estimate


def percent(found: "Estimate | None") -> str:
    """A share with its interval; empty for none."""
    return "" if found is None else f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def points(found: "Estimate | None") -> str:
    """A rating with its interval; empty for none."""
    return "" if found is None else f"{found.value:+z.0f} ({found.low:+z.0f} to {found.high:+z.0f})"


def chance(share: float) -> str:
    """A probability that was counted in draws: none of them, or all, are not 0 and 1."""
    return "<1%" if share < 0.01 else ">99%" if share > 0.99 else f"{share:.0%}"


def would_tell(needed: Mapping[str, int | None]) -> str:
    """Of open verdicts, by what is said behind the number; empty where none is open."""
    said = [f"{count:,}{what}" for what, count in needed.items() if count is not None]
    return f"about {', '.join(said)} prompts would tell" if said else ""

"""What can be wrong with data: a row that cannot be used, and a source that cannot be read on."""

from collections.abc import Sequence

# Problems that an error names; of further ones it says how many.
MOST_NAMED = 10


class DataError(ValueError):
    """Data cannot be used. The message has a line for each of ``problems``, with its place, up to ``MOST_NAMED``."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = [f"and {len(problems) - MOST_NAMED} more"] if len(problems) > MOST_NAMED else []
        super().__init__("\n".join([*problems[:MOST_NAMED], *more]))
        self.problems = tuple(problems)


class BadRowError(ValueError):
    """A row cannot be used. ``reason`` are words that rows are counted by; the message may say more."""

    def __init__(self, reason: str, problem: str = "") -> None:
        super().__init__(problem or reason)
        self.reason = reason

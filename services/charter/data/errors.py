"""What can be wrong with data: a row that cannot be used, and a source that cannot be read on."""

from collections.abc import Sequence

# Problems that an error names; of further ones it says how many.
MOST_NAMED = 10


class DataError(ValueError):
    """Data cannot be used. The message has a line for each of ``problems``, with its place, up to ``MOST_NAMED``.

    ``more`` is the number of further problems, which nobody kept.
    """

    def __init__(self, problems: Sequence[str], more: int = 0) -> None:
        self.problems = tuple(problems[:MOST_NAMED])
        self.more = more + len(problems) - len(self.problems)
        super().__init__("\n".join([*self.problems, *([f"and {self.more} more"] if self.more else [])]))

    @classmethod
    def of(cls, errors: "Sequence[DataError]") -> "DataError":
        """One error of several."""
        return cls([problem for one in errors for problem in one.problems], sum(one.more for one in errors))


class BadRowError(ValueError):
    """A row cannot be used. ``reason`` are words that rows are counted by; the message may say more."""

    def __init__(self, reason: str, problem: str = "") -> None:
        super().__init__(problem or reason)
        self.reason = reason

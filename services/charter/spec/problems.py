"""What is wrong with a spec: each mistake with its field, and the error that carries them all."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. ``field`` is the path at which it is shown, as ``ppo.minibatches`` or ``prompts.train[0]``.

    ``others`` are further fields that it is about: where one of them could not be read, this may be no mistake.
    """

    field: str
    text: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For a person who has no file to look into."""
        return f"{self.field}: {self.text}"


class SpecError(ValueError):
    """A spec cannot be used. ``problems`` has one line of text for each mistake, ``file:line: field: what``."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

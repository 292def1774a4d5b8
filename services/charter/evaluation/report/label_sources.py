"""Whose labels something was made from, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

LABEL_SOURCES = {"AI": "the judge", "HUMAN": "people", "IMPORTED": "files"}


class Labelled(Protocol):
    """A source that says whose labels it has, and how many thumbs are up and down."""

    @property
    def labels(self) -> Mapping[str, int]:
        """By source."""
        ...

    @property
    def verdicts(self) -> Mapping[str, int]:
        """By verdict, ``up`` and ``down``."""
        ...


def labels_in_words(sources: Iterable[Labelled]) -> str:
    """For example ``12 of people, 30 of the judge; 20 thumbs up, 22 down``; empty where nothing has labels."""
    labels: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for one in sources:
        labels.update(one.labels)
        verdicts.update(one.verdicts)
    said = ", ".join(f"{count} of {LABEL_SOURCES[name]}" for name, count in sorted(labels.items()))
    return f"{said}; {verdicts['up']} thumbs up, {verdicts['down']} down" if verdicts else said

"""Whose labels something was made from, in words."""

from collections import Counter
from collections.abc import Iterable

from charter.runs.results import LearnedSource

LABEL_SOURCES = {"AI": "the judge", "HUMAN": "people", "IMPORTED": "files"}


def labels_in_words(sources: Iterable[LearnedSource]) -> str:
    """For example ``12 of people, 30 of the judge; 20 thumbs up, 22 down``; empty where nothing has labels."""
    labels: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for one in sources:
        labels.update(one.labels)
        verdicts.update(one.verdicts)
    said = ", ".join(f"{count} of {LABEL_SOURCES[name]}" for name, count in sorted(labels.items()))
    return f"{said}; {verdicts['up']} thumbs up, {verdicts['down']} down" if verdicts else said

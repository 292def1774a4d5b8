"""What was made, in numbers that show no prompt."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

from charter.data.prompts import TaskPrompt
from charter.evaluation.figures.words import ngrams
from charter.prompts.folder import ACCEPTED, Folder
from charter.prompts.near_copies import NearCopies, pieces_of, plain_words

# Upper ends of the classes of lengths, in words; the last class has none.
_CLASSES = (5, 10, 20, 40, 80)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of what a folder holds. Lengths are in words; distinct-n is the share of different n-grams (Li et al. 2016)."""

    tries: int
    texts: int
    accepted: int
    refused: dict[str, int]
    sides: dict[str, int]
    dimensions: dict[str, int]
    topics: dict[str, int]
    # At 0, 10, 50, 90 and 100 %.
    lengths: list[float]
    # Prompts by class of length: `1-5`, `6-10`, ….
    histogram: dict[str, int]
    distinct: dict[str, float]
    # Similarity with the nearest seed, at 50, 90 and 100 %; empty without seeds.
    nearest_seed: list[float]


def figures(there: Folder, seeds: Sequence[TaskPrompt]) -> Figures:
    """The figures of a folder."""
    counts = there.counts()
    accepted = counts.pop(ACCEPTED, 0)
    words = [plain_words(one.text) for one in there.prompts]
    lengths = [len(one) for one in words]
    index = NearCopies()
    for one in seeds:
        index.add(pieces_of(one.text))
    nearest = [index.nearest(pieces_of(one.text)) for one in there.prompts] if seeds else []
    return Figures(
        tries=len(there.outcomes),
        texts=accepted + counts.total(),
        accepted=accepted,
        refused=dict(counts.most_common()),
        sides=dict(Counter(one.side for one in there.prompts)),
        dimensions=dict(Counter(str(one.row["dimension"]) for one in there.prompts)),
        topics=dict(Counter(str(one.row["generated"]["topic"]) for one in there.prompts)),
        lengths=[_at(lengths, share) for share in (0, 10, 50, 90, 100)] if lengths else [],
        histogram=_histogram(lengths),
        distinct={f"distinct-{n}": _distinct(words, n) for n in (1, 2, 3)} if words else {},
        nearest_seed=[round(_at(nearest, share), 3) for share in (50, 90, 100)] if nearest else [],
    )


def _at(values: Sequence[float], percent: int) -> float:
    if percent in (0, 100) or len(values) < 2:
        return max(values) if percent == 100 else min(values)
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _histogram(lengths: Sequence[int]) -> dict[str, int]:
    names = [f"{low + 1}-{high}" for low, high in zip((0, *_CLASSES), _CLASSES, strict=False)]
    counted = dict.fromkeys([*names, f"over {_CLASSES[-1]}"], 0)
    for length in lengths:
        place = sum(length > high for high in _CLASSES)
        counted[list(counted)[place]] += 1
    return counted


def _distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    found = Counter(ngram for words in texts for ngram in ngrams(words, n))
    return round(len(found) / found.total(), 3) if found else 0.0

"""Phrases that a model learned to say: n-grams and endings whose share rose most against the start model's answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from charter.evaluation.figures.rows import Answer
from charter.evaluation.figures.words import ending, words_of
from charter.evaluation.statistics import LEVEL, Array, Estimate, NotIdentifiedError, numbered

SIZES = range(4, 9)
# A phrase on which the models differ on fewer prompts can show nothing.
_LEAST_PROMPTS = 5
# Share of false ones among the phrases that are reported.
_FALSE = 1 - LEVEL
# A phrase that overlaps a longer one with so much of its share says nothing more.
_AS_FREQUENT = 0.9

Ints = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase whose share rose; shares are means over prompts of the share of a prompt's answers that hold it."""

    kind: Literal["phrase", "ending"]
    text: str
    share: float
    share_of_start: float
    # The difference, with an interval that allows for having been chosen among all that were tested.
    rise: Estimate
    # Adjusted p-value: the least share of false phrases at which this one is reported.
    false_share: float


@dataclass(frozen=True, slots=True)
class Boilerplate:
    """The phrases that rose, the surest rise first, and how many were tested."""

    phrases: tuple[Phrase, ...]
    tested: int
    prompts: int


@dataclass(frozen=True, slots=True)
class _Counted:
    """Of each candidate: on how many prompts the model says it more, and less; sums over prompts."""

    kind: Literal["phrase", "ending"]
    texts: list[str]
    more: Ints
    less: Ints
    share: Array
    share_of_start: Array
    squares: Array


def boilerplate(answers: Sequence[Answer], of_start: Sequence[Answer]) -> Boilerplate:
    """N-grams of 4 to 8 words, and endings of 5, that more of the model's answers hold than of the start model's.

    Of each, a one-sided sign test on the prompts on which the models differ. Which are reported is decided by
    Benjamini and Yekutieli's procedure (2001, theorem 1.3), which holds for phrases that overlap: at most 5 % of them
    are false on average. Their intervals are Bonett and Price's of a paired difference (2012), at the level that keeps
    95 % of the reported ones true (Benjamini and Yekutieli 2005, section 3). Of phrases that overlap and are about as
    frequent, the longest is kept.

    Raises ``NotIdentifiedError`` where no prompt was answered by both.
    """
    shared = {one.prompt for one in answers} & {one.prompt for one in of_start}
    if not shared:
        raise NotIdentifiedError("no boilerplate: no prompt was answered by the model and by the start model")
    rows = [(one, True) for one in answers if one.prompt in shared] + [
        (one, False) for one in of_start if one.prompt in shared
    ]
    prompts, count = numbered([one.prompt for one, _ in rows])
    ours = np.array([own for _, own in rows])
    # An answer's part of its model's share on its prompt; below 0 for the start model.
    sizes = np.bincount(prompts * 2 + ours, minlength=2 * count)
    part = np.where(ours, 1.0, -1.0) / sizes[prompts * 2 + ours]
    texts = [words_of(one.text) for one, _ in rows]
    tables = [*_ngrams(texts, prompts, part), _endings([one.text for one, _ in rows], prompts, part)]
    candidates = [(table, place) for table in tables for place in range(len(table.texts))]
    if not candidates:
        return Boilerplate((), 0, count)
    more = np.concatenate([table.more for table in tables])
    differ = more + np.concatenate([table.less for table in tables])
    adjusted = stats.false_discovery_control(stats.binom.sf(more - 1, differ, 0.5), method="by")
    reported = np.flatnonzero(adjusted <= _FALSE)
    z = float(stats.norm.isf(_FALSE * len(reported) / len(candidates) / 2))
    found = [
        _phrase(table, place, float(adjusted[one]), count, z) for one in reported for table, place in [candidates[one]]
    ]
    found.sort(key=lambda one: (-one.rise.low, -len(one.text), one.text))
    return Boilerplate(tuple(_without_repeats(found)), len(candidates), count)


def _ngrams(texts: Sequence[list[str]], prompts: Ints, part: Array) -> list[_Counted]:
    """One table for each size. A phrase can be frequent only if both phrases that are shorter by a word are."""
    words = [word for text in texts for word in text]
    codes, kinds = numbered(words)
    answer = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    start = np.arange(len(words))
    tables = []
    for size in range(2, SIZES.stop):
        # Two phrases that follow each other, one word apart, make one that is longer by a word.
        follows = (np.diff(start) == 1) & (np.diff(answer) == 0)
        pairs = codes[:-1][follows] * kinds + codes[1:][follows]
        start, answer = start[:-1][follows], answer[:-1][follows]
        if not len(start):
            break
        _, first, codes = np.unique(pairs, return_index=True, return_inverse=True)
        seen_on = np.unique(np.stack([codes, prompts[answer]]), axis=1)[0]
        frequent = np.bincount(seen_on, minlength=len(first)) >= _LEAST_PROMPTS
        kept = frequent[codes]
        first, codes = first[frequent], (np.cumsum(frequent) - 1)[codes[kept]]
        places = start[first]
        start, answer, kinds = start[kept], answer[kept], len(first)
        if size in SIZES:
            named = [" ".join(words[place : place + size]) for place in places]
            tables.append(_counted("phrase", named, codes, answer, prompts, part))
    return tables


def _endings(texts: Sequence[str], prompts: Ints, part: Array) -> _Counted:
    found = [ending(text) for text in texts]
    answer = np.array([place for place, one in enumerate(found) if one], dtype=np.intp)
    codes, _ = numbered([one for one in found if one])
    return _counted("ending", list(dict.fromkeys(one for one in found if one)), codes, answer, prompts, part)


def _counted(
    kind: Literal["phrase", "ending"], texts: list[str], codes: Ints, answer: Ints, prompts: Ints, part: Array
) -> _Counted:
    """Of occurrences: ``codes`` of the candidates, and the ``answer`` of each. Leaves out what can show nothing."""
    if not len(codes):
        return _Counted(kind, [], codes, codes, np.zeros(0), np.zeros(0), np.zeros(0))
    # An answer that says it twice holds it once.
    codes, answer = np.unique(np.stack([codes, answer]), axis=1)
    keys, place = np.unique(np.stack([codes, prompts[answer]]), axis=1, return_inverse=True)
    difference = np.bincount(place, weights=part[answer], minlength=keys.shape[1])
    of = keys[0]

    def by_code(values: NDArray) -> Array:
        return np.bincount(of, weights=values, minlength=len(texts)).astype(np.float64)

    # Shares of a prompt are fractions, whose sum may miss 0 by rounding.
    more, less = by_code(difference > 1e-9).astype(np.intp), by_code(difference < -1e-9).astype(np.intp)
    kept = np.flatnonzero(more + less >= _LEAST_PROMPTS)
    share = np.bincount(codes, weights=np.maximum(part[answer], 0.0), minlength=len(texts))
    of_start = np.bincount(codes, weights=np.maximum(-part[answer], 0.0), minlength=len(texts))
    return _Counted(
        kind,
        [texts[one] for one in kept],
        more[kept],
        less[kept],
        share[kept].astype(np.float64),
        of_start[kept].astype(np.float64),
        by_code(difference**2)[kept],
    )


def _phrase(table: _Counted, place: int, adjusted: float, prompts: int, z: float) -> Phrase:
    share, of_start = float(table.share[place]), float(table.share_of_start[place])
    # One prompt more each way.
    mean = (share - of_start) / (prompts + 2)
    half = z * np.sqrt(((table.squares[place] + 2) / (prompts + 2) - mean**2) / (prompts + 2))
    value = (share - of_start) / prompts
    rise = Estimate(value, float(mean - half), float(min(1.0, max(mean + half, value))), prompts)
    return Phrase(table.kind, table.texts[place], share / prompts, of_start / prompts, rise, adjusted)


def _without_repeats(found: Sequence[Phrase]) -> list[Phrase]:
    """The longest, and of equals the surest, of phrases that overlap by two words and are about as frequent."""
    kept: list[tuple[Phrase, set[tuple[str, str]]]] = []
    for one in sorted(found, key=lambda one: -len(one.text.split())):
        words = one.text.split()
        parts = set(pairwise(words))
        if not any(
            one.kind == other.kind and other.share >= _AS_FREQUENT * one.share and parts & of_other
            for other, of_other in kept
        ):
            kept.append((one, parts))
    return [one for one in found if any(one is other for other, _ in kept)]

"""Which texts are nearly the same: the Jaccard similarity of their sets of five characters in a row, exactly.

An index of near-copies by hashing (MinHash) may overlook one, and a held-out prompt would be trained on. This one looks
only at texts that share a rare piece with the one that is asked about (prefix filtering: Chaudhuri et al. 2006, "A
Primitive Operator for Similarity Joins in Data Cleaning"), and overlooks none.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from charter.held_out import normalised

# Characters in a row: of a short prompt one other word changes few of these, and most sequences of words.
_LENGTH = 5
_WORD = re.compile(r"\w+")

Pieces = frozenset[str]


def plain_words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _WORD.findall(normalised(text).casefold())


def pieces_of(text: str) -> Pieces:
    """All that stands five characters in a row in the plain words of a text; a shorter text whole."""
    plain = " ".join(plain_words(text)) or normalised(text)
    return frozenset(plain[start : start + _LENGTH] for start in range(max(1, len(plain) - _LENGTH + 1)))


def similarity(one: Pieces, other: Pieces) -> float:
    """The Jaccard similarity of two sets: what both have of what either has."""
    return len(one & other) / len(one | other)


class NearCopies:
    """Texts by their pieces."""

    def __init__(self) -> None:
        self._pieces: list[Pieces] = []
        self._places: dict[str, list[int]] = {}

    def add(self, pieces: Pieces) -> int:
        """Add a text; returns its place, which counts from 0."""
        place = len(self._pieces)
        self._pieces.append(pieces)
        for piece in pieces:
            self._places.setdefault(piece, []).append(place)
        return place

    def near(self, pieces: Pieces, least: float) -> Sequence[int]:
        """The places of the texts whose similarity is at least ``least``, above 0."""
        # A text that is as similar shares so many pieces that not all of them are among the others.
        looked_up = len(pieces) - math.ceil(least * len(pieces) - 1e-9) + 1
        rarest = sorted(pieces, key=lambda piece: len(self._places.get(piece, ())))[:looked_up]
        candidates = {place for piece in rarest for place in self._places.get(piece, ())}
        return sorted(place for place in candidates if similarity(pieces, self._pieces[place]) >= least)

    def nearest(self, pieces: Pieces) -> float:
        """The highest similarity with any of the texts; 0 where there is none."""
        shared = Counter(place for piece in pieces for place in self._places.get(piece, ()))
        return max((count / (len(pieces) + len(self._pieces[one]) - count) for one, count in shared.items()), default=0)

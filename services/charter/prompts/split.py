"""Where a new prompt goes: to what is trained on, to what is held out, or nowhere.

Near-copies stay together. The first prompt of a cluster draws its side, by its content; whatever is near to it follows.
A prompt that is near to both sides, or holds eight words in a row of a held-out one, is refused: a model that was
trained on it would know the other.
"""

from charter.chat import ChatMessage
from charter.evaluation.figures.words import ngrams
from charter.held_out import is_held_out, prompt_key
from charter.prompts.near_copies import NearCopies, Pieces, pieces_of, plain_words

TRAIN, HELD_OUT = "train", "held_out"
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"
HELD_OUT_WORDS, BETWEEN = "held_out_words", "near_both_sides"

# Similarity from which a prompt is a copy that is not needed, as with one other word of seven, and from which it is
# near: on one side with the other. Of 23,653 pairs of different prompts (MT-bench, Do-Not-Answer) 0.1 % are above 0.2.
COPY, NEAR = 0.6, 0.3
# As GPT-3's and many benchmarks' rules of contamination, which begin at eight to thirteen words.
_WORDS_IN_A_ROW = 8


class Split:
    """The prompts of both sides. ``fraction`` is the share of clusters that are held out."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._index = NearCopies()
        self._sides: list[str] = []
        self._plain: set[tuple[str, ...]] = set()
        self._in_a_row: dict[str, set[tuple[str, ...]]] = {TRAIN: set(), HELD_OUT: set()}

    def add(self, text: str, side: str) -> None:
        """A prompt that is on a side: one that was there before, or that ``side_of`` put there."""
        words = plain_words(text)
        self._index.add(pieces_of(text))
        self._sides.append(side)
        self._plain.add(tuple(words))
        self._in_a_row[side] |= in_a_row(words)

    def side_of(self, text: str) -> tuple[str, str]:
        """The side of a new prompt and no reason, or no side and why it is refused."""
        words, pieces = plain_words(text), pieces_of(text)
        if tuple(words) in self._plain:
            return "", DUPLICATE
        if self._index.near(pieces, COPY):
            return "", NEAR_DUPLICATE
        rows = in_a_row(words)
        if not rows.isdisjoint(self._in_a_row[HELD_OUT]):
            return "", HELD_OUT_WORDS
        near = self._near_sides(pieces)
        if not rows.isdisjoint(self._in_a_row[TRAIN]):
            # Held out, it would hold what is trained on.
            near.add(TRAIN)
        if len(near) > 1:
            return "", BETWEEN
        drawn = HELD_OUT if is_held_out(prompt_key([ChatMessage("user", text)]), self._fraction) else TRAIN
        return (near.pop() if near else drawn), ""

    def _near_sides(self, pieces: Pieces) -> set[str]:
        return {self._sides[place] for place in self._index.near(pieces, NEAR)}


def in_a_row(words: list[str]) -> set[tuple[str, ...]]:
    """All that stands eight words in a row."""
    return set(ngrams(words, _WORDS_IN_A_ROW))

"""What makes a revision unfit to learn from: a small model that learns from dirty revisions writes nothing else.

Seen by others: scaffolding that leaks into the text ("Here is a revised response"), endings that all revisions share
and that become the model's own, emojis without end (arXiv 2504.04918, and Hugging Face's report on constitutional AI
with open models, 2024).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from charter.evaluation.figures.words import ending, ngrams, words_of
from charter.worker.revision.language import changes_language

EMPTY, CUT_OFF, UNCHANGED, REPEATS = "empty", "cut_off", "unchanged", "repeats_itself"
SCAFFOLDING, SCRIPT, LANGUAGE, ENDING = "scaffolding", "other_script", "other_language", "common_ending"
KINDS = (EMPTY, CUT_OFF, UNCHANGED, REPEATS, SCAFFOLDING, SCRIPT, LANGUAGE, ENDING)

# So many words of the critique in a row are not chance.
_QUOTED_WORDS = 8
# A sequence of so many words, so often, or one word so often in a row.
_SEQUENCE, _TIMES, _IN_A_ROW = 5, 3, 6
# Share of the letters at which a script counts as one that the conversation uses.
_LEAST_SHARE = 0.1
# The share of the revisions at which an ending is common; of few revisions at least so many.
_COMMON_SHARE, _COMMON_COUNT = 0.05, 3

_ANNOUNCED = re.compile(
    r"\b(here(’|'| i)s|below is|this is)\s+(a|an|the|my|your|one)?\s*(possible\s+)?"
    r"(revised|rewritten|revision|rewrite|improved|updated|edited|corrected|new (response|answer|version))\b|"
    r"\b(revised|rewritten|improved|updated|new) (response|answer|version|reply)\s*:|"
    r"\bbased on the (messages|conversation|critique)\b|"
    r"\bthe (previous|original|last|assistant(’|')s) (response|answer)\b",
    re.IGNORECASE,
)
_ROLE = re.compile(
    r"^\W*(human|user|assistant|system|critique( request)?|revision( request)?)\W*:", re.IGNORECASE | re.MULTILINE
)


def why_unfit(revision: str, *, answer: str, prompt: str, critique: str, cut_off: bool) -> str:
    """Which of ``KINDS`` is wrong with one revision; empty for none. Common endings need all: ``common_endings``.

    ``answer`` is what was revised, ``prompt`` the conversation before it.
    """
    if not revision.strip():
        return EMPTY
    if cut_off:
        return CUT_OFF
    if words_of(revision) == words_of(answer):
        return UNCHANGED
    if _repeats(revision):
        return REPEATS
    if _leaks(revision, f"{prompt}\n{answer}", critique):
        return SCAFFOLDING
    if _main_script(revision) not in (scripts := _scripts(f"{prompt}\n{answer}")) and scripts != {""}:
        return SCRIPT
    if changes_language(revision, (prompt, answer)):
        return LANGUAGE
    return ""


def common_endings(revisions: Collection[str]) -> set[str]:
    """The endings, as ``ending`` gives them, that more than 5 % of the revisions share, and at least three."""
    counted = Counter(found for one in revisions if (found := ending(one)))
    least = max(_COMMON_COUNT, _COMMON_SHARE * len(revisions))
    return {text for text, count in counted.items() if count >= least}


def _repeats(text: str) -> bool:
    words = words_of(text)
    in_a_row = 1
    for one, other in pairwise(words):
        # A rule of dashes is no text; a row of emojis is.
        in_a_row = in_a_row + 1 if one == other and one not in string.punctuation else 1
        if in_a_row >= _IN_A_ROW:
            return True
    return any(count >= _TIMES for count in Counter(_sequences(words, _SEQUENCE)).values())


def _leaks(revision: str, conversation: str, critique: str) -> bool:
    """Whether it speaks of revising, names a role at the beginning of a line, or quotes the critique.

    What the conversation itself says may be said again.
    """
    for pattern in (_ANNOUNCED, _ROLE):
        known = {found.group().casefold() for found in pattern.finditer(conversation)}
        if any(found.group().casefold() not in known for found in pattern.finditer(revision)):
            return True
    quoted = set(_sequences(words_of(critique), _QUOTED_WORDS)) - set(_sequences(words_of(conversation), _QUOTED_WORDS))
    return not quoted.isdisjoint(_sequences(words_of(revision), _QUOTED_WORDS))


def _sequences(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    # Rows of punctuation, as a table has them, are no text.
    return (one for one in ngrams(words, length) if any(word.isalnum() for word in one))


def _main_script(text: str) -> str:
    found = _counted_scripts(text).most_common(1)
    return found[0][0] if found else ""


def _scripts(text: str) -> set[str]:
    """The scripts of a conversation; none, which a text of numbers has, is always one of them, and may be the only."""
    counted = _counted_scripts(text)
    return {"", *(script for script, count in counted.items() if count >= _LEAST_SHARE * counted.total())}


def _counted_scripts(text: str) -> Counter[str]:
    # The first word of a letter's Unicode name is its script: LATIN, CYRILLIC, CJK.
    return Counter(unicodedata.name(char, " ").partition(" ")[0] for char in text if char.isalpha())

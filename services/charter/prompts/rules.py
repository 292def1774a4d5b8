"""What is no prompt, by its text alone. What other prompts make of it ``charter.prompts.split`` says."""

import re
from collections import Counter

from charter.evaluation.figures.words import ngrams
from charter.prompts.near_copies import plain_words

CUT_OFF, TOO_SHORT, TOO_LONG, SCAFFOLDING, REPEATS = (
    "cut_off",
    "too_short",
    "too_long",
    "scaffolding",
    "repeats_itself",
)

# A sequence of so many words, so often.
_SEQUENCE, _TIMES = 4, 3
# Names of roles at the beginning of a line, tokens of a chat template, numbers of a list, and what an assistant says
# that speaks of the request instead of making it.
_SCAFFOLDING = re.compile(
    r"^\W*(human|user|assistant|system|ai|request|prompt|question|answer|response|example)\W*\d*\W*:|"
    r"^\W*request\s+\d+\W*$|<\|[^|<>]{1,40}\|>|\[/?INST\]|</?s>|<(start|end)_of_turn>|^\s*#{1,6}\s|\A\s*(\d+[.)]|[-*•])\s|"
    r"\A\W*(sure|certainly|of course|absolutely)\b|"
    r"\b(here(’|'| i)s|below is)\s+(a|an|another|one|your|the)\s+(\w+\s+){0,3}"
    r"(request|prompt|question|message|example)|"
    r"\bas an? (ai|artificial intelligence|(large )?language model)\b|"
    r"\A\W*i(’|'| a)m (sorry|an ai\b|here to (help|assist))",
    re.IGNORECASE | re.MULTILINE,
)


def why_refused(text: str, *, cut_off: bool, least_words: int, most_words: int) -> str:
    """Which rule a text breaks first; empty for none."""
    words = plain_words(text)
    if cut_off:
        return CUT_OFF
    if len(words) < least_words:
        return TOO_SHORT
    if len(words) > most_words:
        return TOO_LONG
    if _SCAFFOLDING.search(text) or "\ufffd" in text:
        return SCAFFOLDING
    sequences = Counter(ngrams(words, _SEQUENCE))
    return REPEATS if any(count >= _TIMES for count in sequences.values()) else ""

"""Which language a text is in, offline (Lui and Baldwin 2012, "langid.py", in the fork that is kept up: py3langid)."""

from collections.abc import Sequence
from functools import cache
from typing import Any

# Probability from which a language is taken as known. Of 4,620 English answers of HH-RLHF, a fifth of them shorter than
# ten words, none was taken for another language; of short sentences in 13 others each was for what it is.
_KNOWN = 0.8
# Not told apart reliably in a sentence, and read by the same people.
_CLOSE = ({"bs", "hr", "sr"}, {"da", "nb", "nn", "no"}, {"id", "ms", "jv"}, {"cs", "sk"}, {"es", "gl"})


def changes_language(text: str, before: Sequence[str]) -> bool:
    """Whether a text is surely in another language than each of those before it, of which one is surely known."""
    now, known = _language(text)
    if not known:
        return False
    earlier = [_language(one) for one in before]
    return any(known for _, known in earlier) and now not in {language for language, _ in earlier}


def _language(text: str) -> tuple[str, bool]:
    """The likeliest language, close ones as one, and whether it is known."""
    language, probability = _identifier().classify(text)
    group = next((sorted(close)[0] for close in _CLOSE if language in close), language)
    return group, probability >= _KNOWN


@cache
def _identifier() -> Any:
    # Loaded where the first revision is read: it takes a moment.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

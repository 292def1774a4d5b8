"""Words of a text, in any script."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

# Scripts without spaces have a word for each character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
_ENDING_WORDS = 5


def words_of(text: str) -> list[str]:
    """Words and signs, without case."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """All that stands ``size`` words in a row."""
    return zip(*(words[start:] for start in range(size)), strict=False)


def ending(text: str) -> str:
    """The last words of a text, without case; empty for one that is hardly longer."""
    words = words_of(text)
    return " ".join(words[-_ENDING_WORDS:]) if len(words) > _ENDING_WORDS else ""

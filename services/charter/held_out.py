"""What is held out: one rule for imported, judged, human and refreshed labels, for calibrations and evaluations.

A prompt is known by its content, not by its exact text: ``prompt_key`` leaves out what nobody sees, so that a prompt
that came through another editor is still the same prompt. Two prompts that differ in nothing else are taken for one: to
hold out one too many costs a label, to train on one that is held out makes every held-out figure untrue.
"""

import hashlib
import json
import math
import unicodedata
from collections.abc import Collection, Iterable

from charter.chat import ChatMessage
from charter.hashing import stable_fraction


def normalised(text: str) -> str:
    """The text as prompts are compared: Unicode NFKC, runs of white space as one space, none at the ends.

    Characters of the class Cf (zero-width spaces and joiners, soft hyphens, byte order marks) are left out. Letters
    keep their case.
    """
    if not text.isascii():
        invisible = {ord(one): None for one in set(text) if unicodedata.category(one) == "Cf"}
        text = unicodedata.normalize("NFKC", text.translate(invisible))
    return " ".join(text.split())


def prompt_key(messages: Iterable[ChatMessage]) -> str:
    """Names a prompt, in 16 hex digits, by roles and normalised texts of its turns; empty system turns do not count."""
    turns = [[message.role, normalised(message.content)] for message in messages]
    content = json.dumps([turn for turn in turns if turn != ["system", ""]], ensure_ascii=False)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]


def is_held_out(key: str, fraction: float) -> bool:
    """Whether a prompt is among the share ``fraction`` that is held out, by its key alone: nothing has to be stored."""
    return _draw(key) < fraction


def held_out_of(keys: Collection[str], fraction: float) -> set[str]:
    """The share ``fraction`` of the keys, rounded up, that ``is_held_out`` would hold out first.

    At least one is held out and at least one is not, where there are two; of fewer none is.
    """
    ordered = sorted(set(keys), key=_draw)
    share = math.ceil(fraction * len(ordered))
    return set(ordered[: min(max(1, share), len(ordered) - 1)]) if len(ordered) > 1 else set()


def _draw(key: str) -> float:
    return stable_fraction("held out", key)

"""Where a sampled answer ends: at its end-of-turn token, before a stop text, or at its most tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from charter.inference.engine import Finish

if TYPE_CHECKING:
    from charter.inference.chat_template import ChatTokenizer


def ending(chat: "ChatTokenizer", token_ids: Sequence[int], stop: Sequence[str]) -> tuple[str, Finish]:
    """Text of the tokens of an answer that has ended, and what ended it."""
    text = chat.decode(token_ids)
    before = before_stop(text, stop)
    if before is not None:
        return before, Finish.STOP
    return text, Finish.EOS if token_ids and token_ids[-1] in chat.stop_ids else Finish.LENGTH


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """What stands before the first stop text in a text; None where there is none."""
    found = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(found)] if found else None


def settled(text: str, stop: Sequence[str]) -> str:
    """A text so far without what may turn out to be the beginning of a stop text."""
    held = (length for one in stop for length in range(len(one) - 1, 0, -1) if text.endswith(one[:length]))
    return text[: len(text) - max(held, default=0)]

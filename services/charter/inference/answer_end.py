"""Where a sampled answer ends: at its end-of-turn token, before a stop text, or at its most tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from charter.inference.engine import Finish, Prompt

if TYPE_CHECKING:
    from charter.inference.chat_template import ChatTokenizer


def ending(chat: "ChatTokenizer", prompt: Prompt, token_ids: Sequence[int], stop: Sequence[str]) -> tuple[str, Finish]:
    """Text of the tokens that a model wrote behind a prompt, and what ended them."""
    text, whole = chat.turn(prompt, token_ids, ended=token_ids[-1] in chat.stop_ids)
    before = before_stop(text, stop)
    if before is not None:
        return before, Finish.STOP
    return text, Finish.EOS if whole else Finish.LENGTH


def begun(chat: "ChatTokenizer", prompt: Prompt, token_ids: Sequence[int], stop: Sequence[str]) -> str:
    """Text of an answer so far, without what may turn out to be the beginning of a stop text."""
    text, _ = chat.turn(prompt, token_ids, ended=False)
    held = (length for one in stop for length in range(len(one) - 1, 0, -1) if text.endswith(one[:length]))
    return text[: len(text) - max(held, default=0)]


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """What stands before the first stop text in a text; None where there is none."""
    found = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(found)] if found else None

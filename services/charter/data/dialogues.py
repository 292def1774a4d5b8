"""Whole dialogues in one text, as HH-RLHF writes them."""

import re

from charter.chat import ChatMessage, Role
from charter.data.errors import BadRowError

# The data card of Anthropic/hh-rlhf: each turn begins after a blank line, with the speaker's name and a colon.
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def is_dialogue(text: str) -> bool:
    """Whether a text begins with a turn such as ``\\n\\nHuman:``."""
    before, *parts = _TURN.split(text)
    return bool(parts) and not before.strip()


def dialogue_turns(text: str, name: str) -> tuple[ChatMessage, ...]:
    """Turns of a dialogue; the white space around each is dropped. Raises ``BadRowError``."""
    if not is_dialogue(text):
        raise BadRowError(
            "not a dialogue", f"{name} must begin with a turn such as '\\n\\nHuman: …', or stand beside a prompt"
        )
    _, *parts = _TURN.split(text)
    return tuple(
        ChatMessage(_ROLES[speaker], content.strip()) for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )

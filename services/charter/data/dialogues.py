"""Whole dialogues in one text: those of HH-RLHF, and the requests of HelpSteer2 that have several turns."""

import re

from charter.chat import ChatMessage, Role
from charter.data.errors import BadRowError

# The data card of Anthropic/hh-rlhf: each turn begins after a blank line, with the speaker's name and a colon.
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "User": "user", "Assistant": "assistant"}
# The data card of nvidia/HelpSteer2: the first turn is the user's and has no mark.
_LATER_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")


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
        ChatMessage(_ROLES[speaker], said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )


def spoken(text: str, name: str) -> tuple[ChatMessage, ...]:
    """The turns that a request's text stands for: those of a dialogue, else one of the user.

    A dialogue may end where the answer begins. Raises ``BadRowError`` for a text without a word.
    """
    if not text.strip():
        raise BadRowError("with an empty prompt", f"{name} is empty")
    if is_dialogue(text):
        turns = dialogue_turns(text, name)
        return turns[:-1] if turns[-1] == ChatMessage("assistant", "") else turns
    first, *parts = _LATER_TURN.split(text)
    later = zip(parts[::2], parts[1::2], strict=True)
    return (ChatMessage("user", first), *(ChatMessage(_ROLES[speaker], said) for speaker, said in later))

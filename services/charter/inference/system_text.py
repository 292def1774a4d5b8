"""System texts that would not reach a model are put before what the user says next."""

from collections.abc import Sequence

from charter.chat import ChatMessage
from charter.inference.engine import RefusedRequestError


def moved_to_user(messages: Sequence[ChatMessage], *, at_start: bool, later: bool, name: str) -> list[ChatMessage]:
    """A conversation whose system texts are in its user messages, with an empty line between.

    Raises ``RefusedRequestError`` when no user message follows one.

    Args:
        messages: in order.
        at_start: whether that is done with a system turn at the beginning,
        later: and behind other turns.
        name: of the model or endpoint, for the error.
    """
    turns: list[ChatMessage] = []
    unseen: list[str] = []
    for place, message in enumerate(messages):
        if message.role == "system" and (later if place else at_start):
            unseen.append(message.content)
        elif message.role == "user":
            turns.append(ChatMessage("user", "\n\n".join(text for text in (*unseen, message.content) if text)))
            unseen = []
        else:
            turns.append(message)
    if unseen:
        raise RefusedRequestError(f"the chat template of {name} has no system turn, and no user turn follows")
    return turns

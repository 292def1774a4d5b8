"""Turns of a conversation as data sets write them: roles by several names, content as text or as a list of parts."""

from collections.abc import Mapping, Sequence
from typing import Any

from charter.chat import ChatMessage, Role
from charter.data import json_text
from charter.data.errors import BadRowError

# OpenAI and Hugging Face, ShareGPT (`human`, `gpt`, and the models that were recorded), OpenAssistant (`prompter`).
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model", "ai"), "assistant"),
}
# Keys of what a turn says, and kinds of its parts that are text (OpenAI's two interfaces).
_TEXTS = ("content", "value", "text")
_TEXT_PARTS = ("text", "input_text", "output_text")


def turns_of(value: Any, name: str) -> tuple[ChatMessage, ...]:
    """Turns from a list of ``role`` and ``content``, or ``from`` and ``value`` (ShareGPT); or from its JSON text.

    Other keys of a turn are ignored, system turns without text left out. Raises ``BadRowError``.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json_text.decode(value.encode(errors="surrogatepass"))
    if not isinstance(value, list):
        raise BadRowError("not a list of turns", f"{name} must be a list of turns, not {_kind(value)}")
    turns = [_turn(turn, f"{name}[{index}]") for index, turn in enumerate(value)]
    return tuple(turn for turn in turns if turn.role != "system" or turn.content.strip())


def text_of(value: Any, name: str) -> str:
    """A text, or the texts of its parts put together. Raises ``BadRowError``."""
    if isinstance(value, list):
        value = "".join(_part(part, f"{name}[{index}]") for index, part in enumerate(value))
    if not isinstance(value, str):
        raise BadRowError("not text", f"{name} must be text, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRowError("not valid Unicode", f"{name} is not valid Unicode: {error.reason}") from error
    return value


def _turn(turn: Any, name: str) -> ChatMessage:
    if not isinstance(turn, Mapping):
        raise BadRowError("not a list of turns", f"{name} must be a turn with role and content, not {_kind(turn)}")
    # Rows of Parquet hold every key of their column, null where a turn has none.
    role_key = next((one for one in ("role", "from") if turn.get(one) is not None), None)
    text_key = next((one for one in _TEXTS if turn.get(one) is not None), _TEXTS[0])
    if role_key is None:
        raise BadRowError("a turn without a role", f"{name} has no role; it has {', '.join(map(str, turn))}")
    said = turn[role_key]
    role = _ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        known = ", ".join(_ROLES)
        raise BadRowError("a turn of an unknown role", f"{name}.{role_key} is {said!r}; known roles are {known}")
    if turn.get("tool_calls"):
        raise BadRowError("a turn that calls a tool", f"{name} calls a tool: such turns are not learned from")
    return ChatMessage(role, text_of(turn.get(text_key), f"{name}.{text_key}"))


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else _kind(part)
    if isinstance(part, Mapping) and kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise BadRowError("a part that is not text", f"{name} is {kind!r}, not text: only texts can be read")


def first_user_turns(turns: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """What is said before the assistant says something for the first time."""
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    return tuple(turns[: places[0]] if places else turns)


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON; not the value itself, which may be anybody's."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)

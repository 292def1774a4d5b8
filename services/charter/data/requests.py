"""What a row asks for: the turns before the answer, in any column that data sets keep them in."""

from charter.chat import ChatMessage
from charter.data.dialogues import spoken
from charter.data.errors import BadRowError
from charter.data.rows import Fields
from charter.data.turns import text_of, turns_of

# Columns of whole conversations, then those of a request; the first that a row has is taken.
CONVERSATIONS = ("messages", "conversations", "conversation")
# `context` is that of HelpSteer3 where it is a list, `history` that of SHP.
REQUESTS = ("prompt", "instruction", "question", "query", "context", "history")
# What Alpaca's `input` and Dolly's `context` add to the request.
_MATERIAL = ("input", "context")
_WITH_MATERIAL = ("instruction", "question", "query")
_SYSTEM = ("system", "system_prompt")


def request_turns(fields: Fields) -> tuple[ChatMessage, ...] | None:
    """The turns that a row asks with, or None where it has no column of a request. Raises ``BadRowError``."""
    name = next((name for name in REQUESTS if name in fields), None)
    if name is None:
        return None
    if isinstance(fields[name], list):
        return with_system(fields, turns_of(fields[name], name))
    text = text_of(fields[name], name)
    material = next((one for one in _MATERIAL if name in _WITH_MATERIAL and fields.get(one)), None)
    if material:
        text = "\n\n".join(part for part in (text, text_of(fields[material], material)) if part.strip())
    return with_system(fields, _earlier(fields) + spoken(text, name))


def _earlier(fields: Fields) -> tuple[ChatMessage, ...]:
    """Turns before the request: each request with its answer in ``history``, as LLaMA-Factory's Alpaca has them."""
    turns: list[ChatMessage] = []
    for index, round_ in enumerate(fields["history"] if isinstance(fields.get("history"), list) else ()):
        if not isinstance(round_, list) or len(round_) != 2:
            raise BadRowError("not a list of turns", f"history[{index}] must be a request and its answer")
        turns.append(ChatMessage("user", text_of(round_[0], f"history[{index}][0]")))
        turns.append(ChatMessage("assistant", text_of(round_[1], f"history[{index}][1]")))
    return tuple(turns)


def with_system(fields: Fields, turns: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The turns behind what the row says to the system in a column of its own, where they do not begin so."""
    name = next((one for one in _SYSTEM if fields.get(one)), None)
    if name is None or (turns and turns[0].role == "system"):
        return turns
    return (ChatMessage("system", text_of(fields[name], name)), *turns)


def column_of(fields: Fields, name: str) -> object:
    """The value of a column that was named. Raises ``BadRowError`` where the row has none."""
    if name not in fields:
        raise BadRowError(f"without {name}", f"has no column {name}; it has {', '.join(fields) or 'nothing'}")
    value: object = fields[name]
    return value

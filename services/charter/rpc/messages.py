"""Conversations between their wire form and the engines' form."""

from collections.abc import Iterable

from charter.chat import ChatMessage, Role
from charter.v1 import types_pb2

_ROLES: dict[int, Role] = {
    types_pb2.ROLE_SYSTEM: "system",
    types_pb2.ROLE_USER: "user",
    types_pb2.ROLE_ASSISTANT: "assistant",
}
_NUMBERS = {
    "system": types_pb2.ROLE_SYSTEM,
    "user": types_pb2.ROLE_USER,
    "assistant": types_pb2.ROLE_ASSISTANT,
}


def chat_messages(messages: Iterable[types_pb2.Message]) -> tuple[ChatMessage, ...]:
    """From the wire. Roles were checked by the interceptor."""
    return tuple(ChatMessage(_ROLES[message.role], message.content) for message in messages)


def proto_messages(messages: Iterable[ChatMessage]) -> list[types_pb2.Message]:
    """To the wire."""
    return [types_pb2.Message(role=_NUMBERS[message.role], content=message.content) for message in messages]

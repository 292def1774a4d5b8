"""Checks a message against the constraints that its fields declare (charter/v1/validation.proto)."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from charter.v1 import validation_pb2

MOST_VIOLATIONS = 20
# A pattern that lists words; an empty one stands for a field that is not set.
_WORDS = re.compile(r"[\w-]*(\|[\w-]+)+")
_MOST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that breaks its constraint; ``field`` is its path, for example ``items[3].answer_a``.

    ``reason`` is for a program: a ``FailureKind`` without its prefix, where only the item is at fault.
    """

    field: str
    description: str
    reason: str = ""


def violations(message: Message) -> list[Violation]:
    """Every broken constraint of a message and all messages in it, at most ``MOST_VIOLATIONS``."""
    found: list[Violation] = []
    for violation in _check_message(message, ""):
        found.append(violation)
        if len(found) == MOST_VIOLATIONS:
            break
    return found


@cache
def _checked_fields(descriptor: Descriptor) -> tuple[tuple[FieldDescriptor, validation_pb2.FieldConstraint], ...]:
    """Fields that need a look: they declare a constraint, are enums, or hold messages that may."""
    constraints = [(field, field.GetOptions().Extensions[validation_pb2.constraint]) for field in descriptor.fields]
    return tuple(
        (field, limit) for field, limit in constraints if limit.ByteSize() or field.enum_type or _holds_messages(field)
    )


def _holds_messages(field: FieldDescriptor) -> bool:
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return False
    return not field.message_type.full_name.startswith("google.protobuf.")


def _check_message(message: Message, prefix: str) -> Iterator[Violation]:
    for field, limit in _checked_fields(message.DESCRIPTOR):
        path = f"{prefix}{field.name}"
        if field.is_repeated:
            yield from _check_list(getattr(message, field.name), field, limit, path)
        elif not field.has_presence or message.HasField(field.name):
            yield from _check_value(getattr(message, field.name), field, limit, path)
        elif limit.required:
            yield Violation(path, "is required")


def _check_list(
    values: Any, field: FieldDescriptor, limit: validation_pb2.FieldConstraint, path: str
) -> Iterator[Violation]:
    if len(values) < limit.min_items:
        yield Violation(path, f"needs at least {limit.min_items} items, has {len(values)}")
    if limit.max_items and len(values) > limit.max_items:
        yield Violation(path, f"holds at most {limit.max_items} items, has {len(values)}")
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return
    for index, value in enumerate(values):
        yield from _check_value(value, field, limit, f"{path}[{index}]")


def _check_value(
    value: Any, field: FieldDescriptor, limit: validation_pb2.FieldConstraint, path: str
) -> Iterator[Violation]:
    if isinstance(value, Message):
        if _holds_messages(field):
            yield from _check_message(value, f"{path}.")
    elif isinstance(value, str | bytes):
        yield from _check_text(value, limit, path)
    elif field.enum_type is not None:
        if limit.required and value == 0:
            yield Violation(path, "is required")
        elif value not in field.enum_type.values_by_number:
            yield Violation(path, f"{value} is not a value of {field.enum_type.name}")
    elif not isinstance(value, bool):
        yield from _check_number(value, limit, path)


def _check_text(value: str | bytes, limit: validation_pb2.FieldConstraint, path: str) -> Iterator[Violation]:
    if limit.required and not value:
        yield Violation(path, "is required")
        return
    if limit.max_length and len(value) > limit.max_length:
        unit = "characters" if isinstance(value, str) else "bytes"
        yield Violation(path, f"holds at most {limit.max_length} {unit}, has {len(value)}")
    elif limit.pattern and isinstance(value, str) and not re.fullmatch(limit.pattern, value):
        yield Violation(path, f"must be {_in_words(limit)}, is {_shown(value)}")


def _in_words(limit: validation_pb2.FieldConstraint) -> str:
    """What a pattern asks for, for a person."""
    if _WORDS.fullmatch(limit.pattern):
        return f"one of {', '.join(word for word in limit.pattern.split('|') if word)}"
    return limit.pattern_in_words or f"a text like the regular expression {limit.pattern}"


def _shown(value: str) -> str:
    return f"`{value}`" if len(value) <= _MOST_SHOWN else f"`{value[:_MOST_SHOWN]}…`"


def _check_number(value: float, limit: validation_pb2.FieldConstraint, path: str) -> Iterator[Violation]:
    bounded = limit.HasField("minimum") or limit.HasField("maximum")
    if (bounded or limit.finite) and not math.isfinite(value):
        yield Violation(path, f"must be a finite number, is {value}")
    elif limit.HasField("minimum") and limit.exclusive_minimum and value <= limit.minimum:
        yield Violation(path, f"must be greater than {_plain(limit.minimum)}, is {_plain(value)}")
    elif limit.HasField("minimum") and value < limit.minimum:
        yield Violation(path, f"must be at least {_plain(limit.minimum)}, is {_plain(value)}")
    elif limit.HasField("maximum") and value > limit.maximum:
        yield Violation(path, f"must be at most {_plain(limit.maximum)}, is {_plain(value)}")


def _plain(number: float) -> str:
    """Counts with all their digits."""
    return str(int(number)) if number == int(number) and abs(number) < 1e15 else f"{number:g}"

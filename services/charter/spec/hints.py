"""What to write in a spec instead of what stands there: a value of another kind, or nothing."""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from charter.spec.defaults import OPTIONAL_SECTIONS
from charter.v1 import run_pb2

_SOURCE: Descriptor = run_pb2.DataSource.DESCRIPTOR


def expected_fields(message: Descriptor, name: str, given: str) -> str:
    """For a text, number or list where fields belong; ``given`` is the text, or nothing.

    ``name`` is that of the field, empty in a list.
    """
    if message.full_name == _SOURCE.full_name:
        example = f"`{{source: {given or 'chat.jsonl'}}}`"
    elif any(field.message_type is _SOURCE for field in message.fields):
        example = f"`{name}: {{data: [{{source: {given or 'chat.jsonl'}}}]}}`"
    else:
        fields = [field.name for field in message.fields]
        return f"expected a mapping with fields of {message.name}: {', '.join(fields[:6])}{', …' * (len(fields) > 6)}"
    return f"expected a mapping, as {example}"


def expected_list(field: FieldDescriptor, given: str) -> str:
    """For a single value where a list belongs; ``given`` is the value where it is text."""
    if field.message_type is None:
        return f"expected a list, as `{field.name}: [{given or '…'}]`"
    if field.message_type.full_name == _SOURCE.full_name:
        return f"expected a list, as `{field.name}: [{{source: {given or 'chat.jsonl'}}}]`"
    return "expected a list"


def empty(field: FieldDescriptor) -> str:
    """For a field with nothing behind its colon: it is not clear whether it was meant to be there."""
    if field.message_type is None or field.is_repeated:
        return "is empty: write a value, or leave the line out"
    without = "no such stage" if field.name in OPTIONAL_SECTIONS else "the same"
    # Of the stages that learn from data of one's own.
    fields = "data: [{source: FILE}]" if field.name in ("supervised", "pretraining") else ""
    defaults = "" if fields else " to have it with every default"
    return f"is empty: write `{field.name}: {{{fields}}}`{defaults}, or leave the line out for {without}"

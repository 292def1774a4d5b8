"""Copies YAML into a message; every mistake is noted with the field's full path and its line."""

import math
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, cast

import yaml
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from charter.spec import hints
from charter.spec.problems import Problem
from charter.spec.yaml_values import value_of

_UNSIGNED_LIMIT = {FieldDescriptor.CPPTYPE_UINT32: 2**32, FieldDescriptor.CPPTYPE_UINT64: 2**64}
_STRUCT = "google.protobuf.Struct"


class Reader:
    """Copies YAML nodes into a message; notes each mistake, and the line of each field."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._lines: dict[str, int] = {}
        # Fields that do not hold what the file wants to say: misspelled, of the wrong type, or out of bounds.
        self.unusable: set[str] = set()
        # Mappings of fields that only another message knows, by their path.
        self.open: dict[str, yaml.MappingNode] = {}

    def certain(self, problem: Problem) -> bool:
        """Whether a mistake is one: no field that it is about, nor what that is in or a part of it, is unusable."""
        fields = (problem.field, *problem.others)
        return not any(_within(field, one) or _within(one, field) for field in fields for one in self.unusable)

    def _problem(self, field: str, text: str, meant: str = "") -> None:
        """Note a mistake in ``field``; ``meant`` is the field that was perhaps meant."""
        self.problems.append(Problem(field, text))
        self.unusable.add(meant or field)

    def has(self, field: str) -> bool:
        """Whether the file names a field, even if only to say ``null``."""
        return field in self._lines

    def line(self, field: str) -> int:
        """Line of a field, or of the nearest part of the spec that would contain it; counts from 1."""
        while field and field not in self._lines:
            cut = max(field.rfind("."), field.rfind("["))
            field = field[:cut] if cut > 0 else ""
        return self._lines.get(field, 1)

    def read_message(self, node: yaml.Node, message: Message, path: str) -> None:
        """Copy a mapping into a message, which stands at ``path`` of the spec; empty = it is the spec."""
        # It is there, whatever it holds: what follows from a section's absence is no second mistake.
        message.SetInParent()
        descriptor = cast(Descriptor, message.DESCRIPTOR)
        if not isinstance(node, yaml.MappingNode):
            self._problem(path, hints.expected_fields(descriptor, path.rpartition(".")[2], _text_of(node)))
            return
        for name, key, value in _entries(node):
            field_path = f"{path}.{name}" if path else name
            if field_path in self._lines:
                self._problem(field_path, f"given again on line {key.start_mark.line + 1}")
                continue
            self._lines[field_path] = key.start_mark.line + 1
            field = descriptor.fields_by_name.get(name)
            if field is None:
                close, text = _unknown(name, descriptor)
                self._problem(field_path, text, f"{path}.{close}".lstrip(".") if close else "")
                if close:
                    _set_in_parent(message, descriptor.fields_by_name[close])
            elif _is_empty(value):
                self._problem(field_path, hints.empty(field))
                _set_in_parent(message, field)
            elif not _is_null(value):
                self._read_field(value, message, field, field_path)

    def _read_field(self, node: yaml.Node, message: Message, field: FieldDescriptor, path: str) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._read_map(node, getattr(message, field.name), field.message_type, path)
        elif field.is_repeated:
            if not isinstance(node, yaml.SequenceNode):
                self._problem(path, hints.expected_list(field, _text_of(node)))
                return
            for index, item in enumerate(node.value):
                item_path = f"{path}[{index}]"
                self._lines[item_path] = item.start_mark.line + 1
                if field.message_type is not None:
                    self.read_message(item, getattr(message, field.name).add(), item_path)
                elif (value := self._scalar(item, field, item_path)) is not None:
                    getattr(message, field.name).append(value)
        elif field.message_type is not None and field.message_type.full_name == _STRUCT:
            self._read_open(node, getattr(message, field.name), path)
        elif field.message_type is not None:
            self.read_message(node, getattr(message, field.name), path)
        elif (value := self._scalar(node, field, path)) is not None:
            setattr(message, field.name, value)

    def _read_open(self, node: yaml.Node, struct: Any, path: str) -> None:
        """Any fields: whoever knows them reads them from ``open``."""
        try:
            if not isinstance(node, yaml.MappingNode):
                raise ValueError("expected a mapping of fields")
            struct.update(_plain(node))
        except (ValueError, RecursionError) as error:
            self._problem(path, "contains itself" if isinstance(error, RecursionError) else str(error))
            return
        self.open[path] = node

    def _read_map(self, node: yaml.Node, entries: Any, entry: Descriptor, path: str) -> None:
        """A map from text to messages, or to single values."""
        if not isinstance(node, yaml.MappingNode):
            self._problem(path, "expected a mapping from names")
            return
        for name, key, value in _entries(node):
            entry_path = f"{path}.{name}"
            if entry_path in self._lines:
                self._problem(entry_path, f"given again on line {key.start_mark.line + 1}")
                continue
            self._lines[entry_path] = key.start_mark.line + 1
            kind = entry.fields_by_name["value"]
            if kind.message_type is not None:
                # Asking for an entry makes it.
                self.read_message(value, entries[name], entry_path)
            elif (single := self._scalar(value, kind, entry_path)) is not None:
                entries[name] = single

    def _scalar(self, node: yaml.Node, field: FieldDescriptor, path: str) -> str | int | float | bool | None:
        """Value of a scalar node as the field's type; None when it was wrong and the problem was noted."""
        try:
            if not isinstance(node, yaml.ScalarNode):
                raise ValueError(f"expected {_expected(field)}")
            return _convert(node, field)
        except ValueError as error:
            self._problem(path, str(error))
            return None


def _entries(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    for key, value in node.value:
        yield (key.value if isinstance(key, yaml.ScalarNode) else "?"), key, value


def _plain(node: yaml.Node) -> Any:
    """What a node says, as JSON has it."""
    if isinstance(node, yaml.MappingNode):
        return {name: _plain(value) for name, _, value in _entries(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    value = value_of(node)
    return value if value is None or isinstance(value, bool | int | float) else _text_of(node)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _is_empty(node: yaml.Node) -> bool:
    """Nothing stands behind the colon; a `null` that is written stands for an unset field."""
    return _is_null(node) and not node.value


def _text_of(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) and not _is_null(node) else ""


def _set_in_parent(message: Message, field: FieldDescriptor) -> None:
    if field.message_type is not None and not field.is_repeated:
        getattr(message, field.name).SetInParent()


def _within(field: str, whole: str) -> bool:
    return field == whole or field.startswith((f"{whole}.", f"{whole}["))


def _unknown(name: str, descriptor: Descriptor) -> tuple[str, str]:
    """The field that was perhaps meant, or nothing, and what to say."""
    valid = [field.name for field in descriptor.fields]
    (close,) = get_close_matches(name, valid, n=1, cutoff=0.5) or [""]
    hint = f"did you mean `{close}`?" if close else f"{descriptor.name} has: {', '.join(valid)}"
    return close, f"unknown field; {hint}"


def _convert(node: yaml.ScalarNode, field: FieldDescriptor) -> str | int | float | bool:
    """Value of ``node`` as protobuf JSON means it.

    Raises ``ValueError`` with what was expected.
    """
    text: str = node.value
    quoted = node.style is not None
    wrong = ValueError(f"expected {_expected(field)}, got `{text}`")
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if not quoted and node.tag != "tag:yaml.org,2002:str":
                raise ValueError(f"expected text, got `{text}`; put it in quotes")
            return text
        case FieldDescriptor.CPPTYPE_BOOL:
            if quoted or text not in ("true", "false"):
                raise wrong
            return text == "true"
        case FieldDescriptor.CPPTYPE_ENUM:
            return _enum(text, cast(EnumDescriptor, field.enum_type))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            number = value_of(node)
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise wrong
            if not math.isfinite(number):
                raise ValueError(f"must be a finite number, got `{text}`")
            return float(number)
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            # Protobuf JSON writes 64-bit integers as text.
            if not (text.isascii() and text.isdecimal()) or (
                quoted and field.cpp_type == FieldDescriptor.CPPTYPE_UINT32
            ):
                raise wrong
            if int(text) >= _UNSIGNED_LIMIT[field.cpp_type]:
                raise ValueError(f"must be below {_UNSIGNED_LIMIT[field.cpp_type]}, got `{text}`")
            return int(text)
    raise AssertionError(f"no spec field has the type of {field.full_name}")


def _enum(text: str, enum: EnumDescriptor) -> int:
    """Number of an enum value given as `contrast` or `JUDGING_METHOD_CONTRAST`."""
    # buf's lint holds that every value starts with the enum's name.
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    names = {value.name: value.number for value in enum.values}
    number = names.get(text, names.get(prefix + text.upper()))
    if number is None:
        valid = [value.name.removeprefix(prefix).lower() for value in enum.values if value.number]
        close = get_close_matches(text.lower(), valid, n=1, cutoff=0.5)
        hint = f"did you mean `{close[0]}`? It" if close else "it"
        raise ValueError(f"`{text}` is unknown; {hint} can be {', '.join(valid)}")
    return number


def _expected(field: FieldDescriptor) -> str:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return "text"
        case FieldDescriptor.CPPTYPE_BOOL:
            return "true or false"
        case FieldDescriptor.CPPTYPE_ENUM:
            return "a name"
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return "a number"
    return "a whole number, 0 or more"

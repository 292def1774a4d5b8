"""Reads a spec from YAML. Every mistake is reported with the field's full path and its line."""

import math
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from charter.rpc.validation import violations
from charter.spec import hints
from charter.spec.paths import resolve_paths
from charter.spec.problems import Problem, SpecError
from charter.spec.yaml_values import Loader, value_of
from charter.v1 import run_pb2

M = TypeVar("M", bound=Message)

_UNSIGNED_LIMIT = {FieldDescriptor.CPPTYPE_UINT32: 2**32, FieldDescriptor.CPPTYPE_UINT64: 2**64}


class MessageFile(Generic[M]):
    """A message as a YAML file says it, with every mistake that was found, and the line of each field.

    ``resolve`` makes the files that it names absolute, against the file's folder, and returns what is missing; defaults
    are not filled in. Raises ``SpecError`` for a file that cannot be read, or is not YAML.
    """

    def __init__(self, path: Path, empty: M, resolve: Callable[[M, Path], list[Problem]]) -> None:
        self.path = path
        self.spec = empty
        self._reader = _Reader()
        self._reader.read_message(_root(path), self.spec, "")
        self._problems = list(self._reader.problems)
        broken = [Problem(one.field, one.description) for one in violations(self.spec)]
        self.add(broken)
        # A value that is out of its bounds breaks no other rule.
        self._reader.unusable.update(one.field for one in broken)
        self.add(resolve(self.spec, path.resolve().parent))

    def add(self, problems: Iterable[Problem]) -> None:
        """Note further mistakes. Those about a field that could not be read are none: it may be right once it can."""
        for problem in problems:
            if not any(self._reader.doubtful(field) for field in (problem.field, *problem.others)):
                self._problems.append(problem)

    def line(self, problem: Problem) -> int:
        """Line of the field that it is about, or of the part of the spec that would contain it; counts from 1."""
        return self._reader.line(problem.field)

    @property
    def problems(self) -> list[Problem]:
        """The mistakes, each once, in the order of the file."""
        return sorted(dict.fromkeys(self._problems), key=self.line)

    def raise_if_wrong(self) -> None:
        """Raises ``SpecError`` with every mistake."""
        if problems := self.problems:
            raise SpecError([f"{self.path}:{self.line(one)}: {one}" for one in problems])


class SpecFile(MessageFile[run_pb2.RunSpec]):
    """The spec of a run. With ``remote`` the models that it names are on the machine that will run it."""

    def __init__(self, path: Path, remote: bool = False) -> None:
        super().__init__(path, run_pb2.RunSpec(), lambda spec, base: resolve_paths(spec, base, remote))


def _root(path: Path) -> yaml.MappingNode:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SpecError([f"{path}: cannot be read: it is not UTF-8 text: {error}"]) from error
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SpecError([f"{path}{line}: not YAML: {error.problem or error.context}"]) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError([f"{path}: not YAML: {error}"]) from error
    if not isinstance(root, yaml.MappingNode):
        raise SpecError([f"{path}: a spec is a mapping of fields, for example `name: my-run`"])
    return root


def spec_to_yaml(spec: run_pb2.RunSpec) -> str:
    """Write a spec as YAML that ``SpecFile`` reads back."""
    fields = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    if "seed" in fields:
        # Protobuf JSON writes 64-bit integers as text.
        fields["seed"] = spec.seed
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def spec_to_json(spec: run_pb2.RunSpec) -> str:
    """Write a spec as protobuf JSON with snake_case names (``spec.json`` of a run folder)."""
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, ensure_ascii=False)


def spec_from_json(text: str) -> run_pb2.RunSpec:
    """Read what ``spec_to_json`` wrote. Raises ``google.protobuf.json_format.ParseError``."""
    return json_format.Parse(text, run_pb2.RunSpec())


class _Reader:
    """Copies YAML nodes into a message; notes each mistake, and the line of each field."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._lines: dict[str, int] = {}
        # Fields that do not hold what the file wants to say: misspelled, of the wrong type, or out of bounds.
        self.unusable: set[str] = set()

    def doubtful(self, field: str) -> bool:
        """Whether a field, what it is in, or a part of it is unusable."""
        return any(_within(field, one) or _within(one, field) for one in self.unusable)

    def _problem(self, field: str, text: str, meant: str = "") -> None:
        """Note a mistake in ``field``; ``meant`` is the field that was perhaps meant."""
        self.problems.append(Problem(field, text))
        self.unusable.add(meant or field)

    def line(self, field: str) -> int:
        """Line of a field, or of the nearest part of the spec that would contain it; counts from 1."""
        while field and field not in self._lines:
            cut = max(field.rfind("."), field.rfind("["))
            field = field[:cut] if cut > 0 else ""
        return self._lines.get(field, 1)

    def read_message(self, node: yaml.Node, message: Message, path: str) -> None:
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
            self._read_map(node, getattr(message, field.name), path)
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
        elif field.message_type is not None:
            self.read_message(node, getattr(message, field.name), path)
        elif (value := self._scalar(node, field, path)) is not None:
            setattr(message, field.name, value)

    def _read_map(self, node: yaml.Node, entries: Any, path: str) -> None:
        """A map from text to messages, the only kind that a spec has."""
        if not isinstance(node, yaml.MappingNode):
            self._problem(path, "expected a mapping from names")
            return
        for name, key, value in _entries(node):
            entry_path = f"{path}.{name}"
            if entry_path in self._lines:
                self._problem(entry_path, f"given again on line {key.start_mark.line + 1}")
                continue
            self._lines[entry_path] = key.start_mark.line + 1
            # Asking for an entry makes it.
            self.read_message(value, entries[name], entry_path)

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

"""Reads a spec from YAML. Every mistake is reported with the field's full path and its line."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message

from charter.rpc.validation import violations
from charter.spec.paths import resolve_paths
from charter.spec.problems import Problem, SpecError
from charter.spec.reader import Reader
from charter.spec.yaml_values import Loader
from charter.v1 import run_pb2

M = TypeVar("M", bound=Message)


class MessageFile(Generic[M]):
    """A message as a YAML file says it, with every mistake that was found, and the line of each field.

    ``resolve`` makes the files that it names absolute, against the file's folder, and returns what is missing; defaults
    are not filled in. Raises ``SpecError`` for a file that cannot be read, or is not YAML.
    """

    def __init__(self, path: Path, empty: M, resolve: Callable[[M, Path], list[Problem]]) -> None:
        self.path = path
        self.spec = empty
        self._reader = Reader()
        self._reader.read_message(_root(path), self.spec, "")
        self._problems = list(self._reader.problems)
        broken = [Problem(one.field, one.description) for one in violations(self.spec)]
        self.add(broken)
        # A value that is out of its bounds breaks no other rule.
        self._reader.unusable.update(one.field for one in broken)
        self.add(resolve(self.spec, path.resolve().parent))

    def add(self, problems: Iterable[Problem]) -> None:
        """Note further mistakes. Those about a field that could not be read are none: it may be right once it can."""
        self._problems += filter(self._reader.certain, problems)

    def has(self, field: str) -> bool:
        """Whether the file names a field, even if only to say ``null``."""
        return self._reader.has(field)

    def fields_of(self, field: str) -> yaml.MappingNode | None:
        """What stands in a field that holds those of another message; None where it holds nothing that can be read."""
        return self._reader.open.get(field)

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

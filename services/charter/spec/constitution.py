"""The constitution: a versioned YAML file of principles, checked, hashed, and carried as a protobuf message."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from charter.spec.yaml_values import Loader, value_of
from charter.v1 import judge_pb2

ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MOST_CHARACTERS = {"id": 200, "dimension": 100, "name": 200, "version": 100}
MOST_TEXT = 20_000
_CONSTITUTION_TEXTS = ("name", "version")
_PRINCIPLE_TEXTS = ("id", "dimension", "compare", "critique", "revise", "follow", "oppose")
_EXAMPLE_TEXTS = ("prompt", "better", "worse")
_REVISION_TEXTS = ("prompt", "answer", "critique", "revision")
# Lists that a principle may be without; a constitution without any keeps the digest that it had before there were some.
_OPTIONAL_LISTS = ("examples", "revisions")
MOST_EXAMPLES = 8


class ConstitutionError(ValueError):
    """A constitution is malformed. ``problems`` are lines such as ``general.yaml:12: principles[1].weight: ...``."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Example:
    """A request and two answers, of which one keeps to the principle."""

    prompt: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True)
class RevisionExample:
    """A request, an answer that breaks the principle, what is wrong with it, and a better answer."""

    prompt: str
    answer: str
    critique: str
    revision: str


@dataclass(frozen=True, slots=True)
class Principle:
    """One rule, with its text for each use.

    ``compare`` asks which of two answers is better, ``critique`` and ``revise`` instruct the two steps of
    Constitutional AI (Bai et al. 2022, section 3.1), ``follow`` and ``oppose`` are system prompts of a writer who keeps
    to the rule and of one who breaks it. With ``oppose_without_prompt`` the one who breaks it has not read the
    conversation: what anybody would say is then no merit. ``weight`` is the relative chance of being drawn.
    ``examples`` are shown to the judge before a pair that is compared by its answer letters, ``revisions`` before an
    answer that is criticised or revised.
    """

    id: str
    dimension: str
    compare: str
    critique: str
    revise: str
    follow: str
    oppose: str
    oppose_without_prompt: bool = False
    weight: float = 1.0
    examples: tuple[Example, ...] = ()
    revisions: tuple[RevisionExample, ...] = ()


@dataclass(frozen=True, slots=True)
class Constitution:
    """A versioned set of principles. ``source_yaml`` is the file as it was read; it has no part in the digest."""

    name: str
    version: str
    description: str
    principles: tuple[Principle, ...]
    source_yaml: str

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of the content: comments, key order and layout of the file do not change it."""
        content = asdict(self)
        del content["source_yaml"]
        for principle in content["principles"]:
            for name in _OPTIONAL_LISTS:
                if not principle[name]:
                    del principle[name]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def principle(self, principle_id: str) -> Principle:
        """The principle of this id. Raises ``KeyError``."""
        for principle in self.principles:
            if principle.id == principle_id:
                return principle
        raise KeyError(principle_id)

    def of_dimension(self, dimension: str) -> tuple[Principle, ...]:
        """The principles of a dimension, or all of them when it is empty."""
        return tuple(p for p in self.principles if not dimension or p.dimension == dimension)

    def to_proto(self) -> judge_pb2.Constitution:
        """The constitution as the judge serves it."""
        return judge_pb2.Constitution(
            name=self.name,
            version=self.version,
            description=self.description,
            principles=[judge_pb2.Principle(**asdict(principle)) for principle in self.principles],
            digest=self.digest,
            source_yaml=self.source_yaml,
        )


def from_proto(message: judge_pb2.Constitution) -> Constitution:
    """The inverse of ``Constitution.to_proto``."""
    return Constitution(
        name=message.name,
        version=message.version,
        description=message.description,
        principles=tuple(
            Principle(
                **{
                    one.name: getattr(principle, one.name)
                    for one in fields(Principle)
                    if one.name not in _OPTIONAL_LISTS
                },
                examples=tuple(Example(one.prompt, one.better, one.worse) for one in principle.examples),
                revisions=tuple(
                    RevisionExample(one.prompt, one.answer, one.critique, one.revision) for one in principle.revisions
                ),
            )
            for principle in message.principles
        ),
        source_yaml=message.source_yaml,
    )


def load_constitution(path: Path) -> Constitution:
    """Read and check a YAML file. Raises ``ConstitutionError`` with every problem found, ``OSError``."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConstitutionError([f"{path}: is not UTF-8 text: {error}"]) from error
    return parse_constitution(text, str(path))


def parse_constitution(text: str, file: str) -> Constitution:
    """Check YAML text; ``file`` names it in the errors. Raises ``ConstitutionError`` with every problem found."""
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConstitutionError([f"{file}:{line}: is not YAML: {error.problem or error.context}"]) from error
    except yaml.YAMLError as error:
        raise ConstitutionError([f"{file}: is not YAML: {error}"]) from error
    if root is None:
        raise ConstitutionError([f"{file}:1: is empty"])
    reader = _Reader(file)
    constitution = reader.constitution(root, text)
    if constitution is None or reader.problems:
        raise ConstitutionError(reader.problems)
    return constitution


class _Reader:
    """Walks the YAML nodes, whose marks give the lines, and collects problems."""

    def __init__(self, file: str) -> None:
        self.problems: list[str] = []
        self._file = file

    def constitution(self, root: yaml.Node, source: str) -> Constitution | None:
        given = self._fields(root, "constitution", (*_CONSTITUTION_TEXTS, "description", "principles"))
        if given is None:
            return None
        texts = {name: self._required_text(root, given, name, name) for name in _CONSTITUTION_TEXTS}
        description = self._text(given["description"], "description") if "description" in given else ""
        principles = self._principles(root, given)
        return Constitution(**texts, description=description, principles=principles, source_yaml=source)

    def _principles(self, root: yaml.Node, given: dict[str, yaml.Node]) -> tuple[Principle, ...]:
        node = given.get("principles")
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._problem(node or root, "principles", "must be a list with at least one principle")
            return ()
        principles = []
        first_line: dict[str, int] = {}
        for index, item in enumerate(node.value):
            principle = self._principle(item, f"principles[{index}]")
            if principle is not None:
                line = item.start_mark.line + 1
                if first_line.setdefault(principle.id, line) != line:
                    where = first_line[principle.id]
                    self._problem(item, f"principles[{index}].id", f"{principle.id!r} is taken since line {where}")
                principles.append(principle)
        return tuple(principles)

    def _principle(self, node: yaml.Node, path: str) -> Principle | None:
        given = self._fields(node, path, (*_PRINCIPLE_TEXTS, "oppose_without_prompt", "weight", *_OPTIONAL_LISTS))
        if given is None:
            return None
        texts = {name: self._required_text(node, given, name, f"{path}.{name}") for name in _PRINCIPLE_TEXTS}
        for name in ("id", "dimension"):
            if texts[name] and not ID.fullmatch(texts[name]):
                self._problem(given[name], f"{path}.{name}", "may have lower-case letters, digits and single hyphens")
        blind = self._flag(given, "oppose_without_prompt", path)
        weight = self._weight(given["weight"], f"{path}.weight") if "weight" in given else 1.0
        examples = self._examples(given, "examples", path, _EXAMPLE_TEXTS, ("better", "worse"))
        revisions = self._examples(given, "revisions", path, _REVISION_TEXTS, ("answer", "revision"))
        return Principle(
            **texts,
            oppose_without_prompt=blind,
            weight=weight,
            examples=tuple(Example(**one) for one in examples),
            revisions=tuple(RevisionExample(**one) for one in revisions),
        )

    def _examples(
        self, given: dict[str, yaml.Node], field: str, path: str, names: Sequence[str], different: tuple[str, str]
    ) -> list[dict[str, str]]:
        """The texts of each example of a field; those that ``different`` names must differ."""
        if field not in given:
            return []
        node, path = given[field], f"{path}.{field}"
        if not isinstance(node, yaml.SequenceNode) or not 1 <= len(node.value) <= MOST_EXAMPLES:
            self._problem(node, path, f"must be a list of 1 to {MOST_EXAMPLES} examples")
            return []
        examples = []
        for index, item in enumerate(node.value):
            place = f"{path}[{index}]"
            found = self._fields(item, place, names)
            if found is not None:
                texts = {name: self._required_text(item, found, name, f"{place}.{name}") for name in names}
                one, other = different
                if texts[one] and texts[one] == texts[other]:
                    self._problem(item, place, f"{one} and {other} are the same text")
                examples.append(texts)
        return examples

    def _fields(self, node: yaml.Node, path: str, known: Sequence[str]) -> dict[str, yaml.Node] | None:
        """Values by key; unknown and repeated keys are problems."""
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, path, f"must have the fields {', '.join(known)}")
            return None
        given: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            prefix = "" if path == "constitution" else f"{path}."
            if name not in known:
                self._problem(key, f"{prefix}{name}", f"unknown field; known are {', '.join(known)}")
            elif name in given:
                self._problem(key, f"{prefix}{name}", "is given twice")
            given[name] = value
        return given

    def _required_text(self, parent: yaml.Node, given: dict[str, yaml.Node], name: str, path: str) -> str:
        if name not in given:
            self._problem(parent, path, "is missing")
            return ""
        text = self._text(given[name], path)
        most = MOST_CHARACTERS.get(name, MOST_TEXT)
        if len(text) > most:
            self._problem(given[name], path, f"has {len(text)} characters, at most {most} are allowed")
        return text

    def _text(self, node: yaml.Node, path: str) -> str:
        value = value_of(node)
        if not isinstance(value, str):
            kind = "must be text" if value is None else f"must be text, not {value!r}: put it in quotes"
            self._problem(node, path, kind)
            return ""
        if not value.strip():
            self._problem(node, path, "must not be empty")
        return value.strip()

    def _flag(self, given: dict[str, yaml.Node], name: str, path: str) -> bool:
        if name not in given:
            return False
        value = value_of(given[name])
        if not isinstance(value, bool):
            self._problem(given[name], f"{path}.{name}", "must be true or false")
        return bool(value)

    def _weight(self, node: yaml.Node, path: str) -> float:
        value = value_of(node)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            self._problem(node, path, f"must be a number above 0, not {node.value!r}")
            return 1.0
        return float(value)

    def _problem(self, node: yaml.Node, path: str, text: str) -> None:
        self.problems.append(f"{self._file}:{node.start_mark.line + 1}: {path}: {text}")

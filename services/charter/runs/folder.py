"""Reads back the folder that a run left, whole or in part."""

import dataclasses
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import yaml
from google.protobuf import json_format
from pydantic import TypeAdapter, ValidationError

from charter.runs.results import (
    Evaluation,
    JudgeCheck,
    Learned,
    LeftOut,
    Leg,
    PreferenceFit,
    PromptSource,
    Revisions,
)
from charter.spec.facts import needs_reinforcement
from charter.spec.load import spec_from_json
from charter.spec.yaml_values import Loader
from charter.v1 import judge_pb2, run_pb2

T = TypeVar("T")

# Stages that learn from what is written, and what they leave.
_LEARNING = {
    "pretraining": "what was learned from texts",
    "supervised": "what was learned from conversations",
    "revised": "what was learned from revisions",
    "dpo": "what was learned from comparisons",
    "kto": "what was learned from thumbs",
}


class RunFolderError(ValueError):
    """A folder is no run folder, or a file in it cannot be read; the text names the file."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """``run.json``: what ran, when, how long each phase took (seconds), and what was counted on the way."""

    id: str
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    constitution_digest: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    phase_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    # By stage.
    left_out: dict[str, LeftOut] = dataclasses.field(default_factory=dict)
    # By short name, in the order of the spec.
    prompt_sources: dict[str, PromptSource] = dataclasses.field(default_factory=dict)
    # One an attempt, oldest first; empty in files of older runs.
    legs: tuple[Leg, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run as its folder tells it. What a run that ended early did not write is None, and named in ``missing``."""

    path: Path
    spec: run_pb2.RunSpec | None
    info: RunInfo | None
    constitution: judge_pb2.Constitution | None
    # In order, each sequence once.
    events: tuple[run_pb2.RunEvent, ...]
    judge_check: JudgeCheck | None
    # None where the spec asks for none, too.
    revisions: Revisions | None
    preference_fit: PreferenceFit | None
    evaluation: Evaluation | None
    # Of the stages that learned from texts and conversations, those that the spec asks for, by section.
    learned: dict[str, Learned]
    # File name and what it would have held.
    missing: dict[str, str]
    # What was odd about the files that are there.
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run, else its id, else the folder's name."""
        if self.spec is not None and self.spec.name:
            return self.spec.name
        return self.info.id if self.info is not None and self.info.id else self.path.name

    def engine(self, service: str) -> str:
        """The engine that the ``policy`` or the ``judge`` ran on, as the service said; else what the spec says."""
        if self.info is not None and (served := self.info.versions.get(f"{service} engine")):
            return served
        return str(getattr(self.spec, service).engine) if self.spec is not None else ""

    @property
    def fake(self) -> bool:
        """Whether the policy or the judge was the fake engine, which stands in for a model in tests."""
        return "fake" in (self.engine("policy"), self.engine("judge"))

    @property
    def ppo_steps(self) -> dict[int, dict[str, float]]:
        """Metrics of each PPO step; of a step that ran again after a resume, the last ones."""
        return self.steps(run_pb2.PHASE_PPO)

    def steps(self, phase: "run_pb2.Phase.ValueType") -> dict[int, dict[str, float]]:
        """The same of another phase that learns in steps."""
        steps = {e.step: dict(e.metrics) for e in self.events if e.phase == phase and e.HasField("step")}
        return {step: steps[step] for step in sorted(steps) if steps[step]}


def is_run_folder(path: Path) -> bool:
    """Whether a run has begun to write into this folder."""
    return (path / "spec.json").is_file() or (path / "run.json").is_file()


def newest_run(runs: Path, name: str) -> Path | None:
    """Folder of the newest run of a spec with this name; ids are NAME-DATE-TIME-RANDOM (charter.trainer.runs)."""
    numbered = re.compile(re.escape(name) + r"-\d{8}-\d{6}-[0-9a-f]{4}")
    named = (one for one in runs.iterdir() if numbered.fullmatch(one.name)) if runs.is_dir() else ()
    return max((one for one in named if is_run_folder(one)), key=lambda one: one.name, default=None)


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        RunFolderError: ``path`` is not a run folder, or a file in it is malformed.
    """
    if not is_run_folder(path):
        raise RunFolderError(f"{path} is not the folder of a run: it holds neither spec.json nor run.json")
    notes: list[str] = []
    missing: dict[str, str] = {}

    def result(name: str, holds: str, kind: type[T]) -> T | None:
        file = path / name
        if not file.is_file():
            missing[name] = holds
            return None
        try:
            return TypeAdapter(kind).validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise RunFolderError(f"{file}: {field + ': ' if field else ''}{first['msg']}") from error

    spec = _spec(path / "spec.json", missing)
    aligned = spec is None or needs_reinforcement(spec)
    asked = {field.name for field, _ in spec.ListFields()} if spec is not None else set()

    def of_alignment(name: str, holds: str, kind: type[T]) -> T | None:
        return result(name, holds, kind) if aligned else None

    # Of a revision something may be learned, or nothing.
    wanted = asked | ({"revised"} if (path / "revised.json").is_file() else set())
    learned = {
        name: found
        for name, holds in _LEARNING.items()
        if name in wanted and (found := result(f"{name}.json", holds, Learned)) is not None
    }
    return RunFolder(
        path=path,
        spec=spec,
        learned=learned,
        info=result("run.json", "versions, phase times and counts", RunInfo),
        constitution=_constitution(path / "constitution.yaml", missing) if aligned else None,
        events=_events(path / "events.jsonl", missing, notes),
        judge_check=result("judge_check.json", "the judge's accuracy on labelled pairs", JudgeCheck)
        if aligned
        else None,
        revisions=result("revision.json", "what became of the revisions", Revisions) if "revision" in asked else None,
        preference_fit=result("preference_fit.json", "the fit of the preference model", PreferenceFit)
        if aligned
        else None,
        evaluation=of_alignment("evaluation.json", "the aligned policy against the one it started from", Evaluation),
        missing=missing,
        notes=tuple(notes),
    )


def _spec(file: Path, missing: dict[str, str]) -> run_pb2.RunSpec | None:
    if not file.is_file():
        missing[file.name] = "the exact spec"
        return None
    try:
        return spec_from_json(file.read_text(encoding="utf-8"))
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{file}: {error}") from error


def _constitution(file: Path, missing: dict[str, str]) -> judge_pb2.Constitution | None:
    if not file.is_file():
        missing[file.name] = "the constitution that the judge read"
        return None
    try:
        fields = yaml.load(file.read_text(encoding="utf-8"), Loader=Loader)
        if not isinstance(fields, dict):
            raise RunFolderError(f"{file}: expected a mapping with a name and principles")
        if "version" in fields:
            # YAML reads an unquoted 1 or 2026-11-23 as a number or a date.
            fields["version"] = str(fields["version"])
        for principle in fields.get("principles", []):
            principle.setdefault("weight", 1.0)
        return json_format.ParseDict(fields, judge_pb2.Constitution(), ignore_unknown_fields=True)
    except (yaml.YAMLError, json_format.ParseError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{file}: {error}") from error


def _events(file: Path, missing: dict[str, str], notes: list[str]) -> tuple[run_pb2.RunEvent, ...]:
    if not file.is_file():
        missing[file.name] = "the progress and the numbers of each PPO step"
        return ()
    events: dict[int, run_pb2.RunEvent] = {}
    unreadable = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            event = json_format.Parse(line.decode("utf-8"), run_pb2.RunEvent())
        except (json_format.ParseError, UnicodeDecodeError):
            # A worker that is killed while it writes leaves half a line, and the next attempt appends to it.
            unreadable.append(str(number))
            continue
        events.setdefault(event.sequence, event)
    if unreadable:
        notes.append(f"{file.name}: {len(unreadable)} unreadable, left out: line {', '.join(unreadable)}")
    return tuple(events[sequence] for sequence in sorted(events))

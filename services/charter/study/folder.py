"""The folder of a study: what it is of, its pairs and labels, its runs, and what measures them.

spec.json          the spec with its defaults
run_spec.json      the run spec that all arms share
arms.json          by arm, the spec that its runs have in common
pairs.jsonl        the pairs of answers that are labelled
served.json        what judged them
votes.jsonl        one line a vote of a person on a pair
labels.jsonl       one line a label
labelled.json      what the labels came to: there once the arms may learn from them
runs.json          the run of each arm and seed
clock.json         when `charter compare` was at work
evaluation/        the folder of an evaluation of all policies
result.json, report.html, figure.svg, figure.png
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from charter.atomic_files import write_json, write_text
from charter.evaluation.compare.asked import AskedFolder
from charter.evaluation.compare.folder import EvaluationFolder
from charter.spec.load import spec_to_json as run_spec_to_json
from charter.state_files import read_json, read_text
from charter.study.spec import CheckedStudy, StudySpec, spec_from_json, spec_to_json
from charter.v1 import run_pb2

_ADVICE = "Bring it back from a copy, or begin another study"


@dataclass(frozen=True, slots=True)
class StudyRun:
    """The run of an arm with a seed. It is noted before the trainer is asked for it: then it is found again."""

    arm: str
    seed: int
    request_id: str
    # Which of the study's services it has, a place in ``slots``.
    slot: int = 0
    # Its id; empty = the trainer has not said yet.
    run: str = ""
    # Folder of the run.
    artifacts: str = ""
    # As ``charter.v1.RunState``, without the prefix.
    state: str = ""
    error: str = ""
    # Of all its attempts that have ended.
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """Arm and seed."""
        return self.arm, self.seed

    @property
    def succeeded(self) -> bool:
        """Whether it has made its policy."""
        return self.state == "SUCCEEDED"

    @property
    def ended(self) -> bool:
        """Whether no worker is at it."""
        return self.state in ("SUCCEEDED", "FAILED", "CANCELLED")


class StudyFolder(AskedFolder):
    """Paths of a study's folder, and what is in its files. Raises ``StateFileError`` for one that is damaged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.spec = path / "spec.json"
        self.run_spec = path / "run_spec.json"
        self.arms = path / "arms.json"
        self.pairs = path / "pairs.jsonl"
        self.labels = path / "labels.jsonl"
        self.labelled = path / "labelled.json"
        self.runs = path / "runs.json"
        self.clock = path / "clock.json"
        self.evaluation = EvaluationFolder(path / "evaluation")
        self.result = path / "result.json"
        self.report = path / "report.html"
        self.figure_svg = path / "figure.svg"
        self.figure_png = path / "figure.png"

    def begin(self, study: CheckedStudy) -> None:
        """Write what is asked."""
        write_json(self.arms, {name: _as_dict(spec) for name, spec in study.arms.items()})
        write_text(self.run_spec, run_spec_to_json(study.base))
        write_text(self.spec, spec_to_json(study.spec))

    def read_spec(self) -> StudySpec | None:
        """The spec that it was begun with; None before."""
        return read_text(self.spec, spec_from_json, _ADVICE) if self.spec.exists() else None

    def read_run_spec(self) -> run_pb2.RunSpec:
        """The filled run spec that all arms share. Raises ``OSError`` before it was begun."""
        return read_json(self.run_spec, _spec, _ADVICE)

    def read_arms(self) -> dict[str, run_pb2.RunSpec]:
        """By arm, the spec that its runs have in common; none before it was begun."""
        if not self.arms.exists():
            return {}
        return read_json(self.arms, lambda found: {name: _spec(fields) for name, fields in found.items()}, _ADVICE)

    def read_runs(self) -> dict[tuple[str, int], StudyRun]:
        """The runs that were begun, by arm and seed."""
        if not self.runs.exists():
            return {}
        return read_json(self.runs, lambda found: {one.key: one for one in (StudyRun(**row) for row in found)}, _ADVICE)

    def note_run(self, run: StudyRun) -> None:
        """Keep what is known of a run. One thread at a time."""
        known = self.read_runs()
        known[run.key] = run
        write_json(self.runs, [asdict(one) for one in known.values()])

    def start_clock(self) -> None:
        """From now on `charter compare` is at work."""
        now = time.time()
        write_json(self.clock, [*self._legs(), [now, now]])

    def tick(self) -> None:
        """It still is."""
        *before, (begin, _) = self._legs()
        write_json(self.clock, [*before, [begin, time.time()]])

    def seconds_worked(self) -> float:
        """How long `charter compare` was at work, until the last ``tick``."""
        return sum(end - begin for begin, end in self._legs())

    def _legs(self) -> list[tuple[float, float]]:
        if not self.clock.exists():
            return []
        return read_json(self.clock, lambda found: [(float(begin), float(end)) for begin, end in found], _ADVICE)


def _as_dict(spec: run_pb2.RunSpec) -> dict[str, Any]:
    return json_format.MessageToDict(spec, preserving_proto_field_name=True)


def _spec(fields: dict[str, Any]) -> run_pb2.RunSpec:
    return json_format.ParseDict(fields, run_pb2.RunSpec())

"""The spec of a study: what it says, with its defaults filled in. ``charter.study.load`` reads and checks the file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from charter.spec import comparison_checks
from charter.spec.defaults import fill
from charter.spec.problems import Problem
from charter.v1 import evaluation_pb2, run_pb2, study_pb2

StudySpec = study_pb2.StudySpec

# What the arms start from, as one of the models that are measured.
START = "start"
# Labellers that are no service: whose labels stand in the files of the pairs, and who uses the feedback page.
IMPORTED, PEOPLE = "imported", comparison_checks.PEOPLE
_SEEDS = (1, 2, 3)
_AXES = ("helpful", "harmless")


@dataclass(frozen=True, slots=True)
class CheckedStudy:
    """The spec of a file with its defaults, and those of its arms; ``unread`` is what could not be looked into."""

    spec: StudySpec
    # CHARTER_HOME/studies/NAME.
    folder: Path
    # The run spec that the arms share, filled.
    base: run_pb2.RunSpec
    # By arm: what its runs have in common, filled. Name, seed, stored labels and what another arm made are each run's.
    arms: Mapping[str, run_pb2.RunSpec]
    unread: Sequence[Problem]
    # No mistakes, but worth a word.
    remarks: Sequence[Problem]


def fill_defaults(spec: StudySpec, base: run_pb2.RunSpec) -> StudySpec:
    """Copy of ``spec`` in which every unset field has its default; ``base`` is the filled run spec of its arms."""
    filled = StudySpec()
    filled.CopyFrom(spec)
    fill(filled, {"seeds": _SEEDS})
    fill(filled.evaluation, {"axes": _AXES, "answers_per_prompt": 1, "bootstrap_samples": 2000})
    fill(filled.evaluation.sampling, {field.name: value for field, value in base.sampling.ListFields()})
    return filled


def spec_to_json(spec: StudySpec) -> str:
    """Write a spec as protobuf JSON with snake_case names (``spec.json`` of a study's folder)."""
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, ensure_ascii=False)


def spec_from_json(text: str) -> StudySpec:
    """Read what ``spec_to_json`` wrote. Raises ``google.protobuf.json_format.ParseError``."""
    return json_format.Parse(text, StudySpec())


def labellers_of(arm: study_pb2.StudyArm) -> list[str]:
    """Whose labels an arm learns from, each once; none where it learns from no labels of the pairs."""
    return [arm.labels] if arm.labels else sorted(set(arm.labels_by_dimension.values()))


def labellers(spec: StudySpec) -> list[str]:
    """Whose labels some arm learns from: those of the files, people, judges, scorers, as the spec has them."""
    used = {labeller for arm in spec.arms for labeller in labellers_of(arm)}
    return [name for name in known_labellers(spec) if name in used]


def known_labellers(spec: StudySpec) -> list[str]:
    """Everyone who can label, used or not."""
    return [IMPORTED, PEOPLE, *(one.name for one in spec.judges), *(one.name for one in spec.scorers)]


def axes(spec: StudySpec) -> tuple[str, str]:
    """The dimensions of the figure of a filled spec, across and up."""
    across, up = spec.evaluation.axes
    return across, up


def run_name(spec: StudySpec, arm: str, seed: int) -> str:
    """Name of the run of an arm with a seed."""
    return f"{spec.name}-{arm}-{seed}"


def started_from(spec: StudySpec) -> dict[str, str]:
    """By arm the one whose policy it starts from, empty for the start."""
    return {arm.name: arm.after for arm in spec.arms}


def asked(spec: StudySpec) -> evaluation_pb2.EvaluateSpec:
    """Prompts and judges of the measurement as those of an evaluation; what it measures is left out."""
    evaluation = spec.evaluation
    found = evaluation_pb2.EvaluateSpec(
        name=spec.name, seed=spec.seed, start=START, pairs="start", prompts=evaluation.prompts, judges=evaluation.judges
    )
    if evaluation.HasField("sampling"):
        found.sampling.CopyFrom(evaluation.sampling)
    for name in ("answers_per_prompt", "bootstrap_samples"):
        if evaluation.HasField(name):
            setattr(found, name, getattr(evaluation, name))
    return found

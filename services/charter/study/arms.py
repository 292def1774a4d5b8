"""What an arm's runs are told: the run spec that all arms share, and what the arm has otherwise."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.message import Message

from charter.spec import facts
from charter.spec.defaults import fill_defaults
from charter.spec.paths import resolve_paths
from charter.spec.problems import Problem
from charter.spec.reader import Reader
from charter.study.labels import stored_of, with_stored
from charter.study.spec import StudySpec, labellers_of
from charter.v1 import run_pb2, study_pb2

# Fields of the run spec that are the study's.
_OF_STUDY = {
    "name": "is made of the names of study, arm and seed",
    "seed": "is one of seeds, of the study",
    "policy.model": "is that of the run spec, from which all arms start; `after` starts an arm from another's policy",
    "policy.chat_template": "is that of the run spec, from which all arms start",
    "policy.eos_token": "is that of the run spec, from which all arms start",
}


class Arm:
    """An arm of a spec's file: ``merged`` is what it says, ``spec`` that with its labels and every default."""

    def __init__(
        self,
        study: StudySpec,
        arm: study_pb2.StudyArm,
        own: yaml.MappingNode | None,
        base: run_pb2.RunSpec,
        folder: Path,
    ) -> None:
        """``own`` stands in ``run`` of the arm; its files are as seen from ``folder``, those of ``base`` absolute."""
        self._reader = Reader()
        given = run_pb2.RunSpec()
        if own is not None:
            self._reader.read_message(own, given, "")
        self.problems = [*self._reader.problems]
        self._add(resolve_paths(given, folder))
        self._add(Problem(field, f"{why}: leave it out") for field, why in _OF_STUDY.items() if self.names(field))
        self.merged = run_pb2.RunSpec()
        self.merged.CopyFrom(base)
        merge(self.merged, given, self._reader.has)
        if self._reader.has("ppo") and not given.HasField("ppo"):
            self._add(_without_reinforcement(self.merged))
        self.spec = filled(_labelled(self.merged, stored_of(study, arm)))

    def names(self, field: str) -> bool:
        """Whether the arm itself says something of a field of the run spec."""
        return self._reader.has(field)

    def certain(self, problem: Problem) -> bool:
        """As ``Reader.certain``."""
        return self._reader.certain(problem)

    def line(self, field: str) -> int | None:
        """Line of a field of the run spec, or of what the arm has around it; None where it has neither."""
        while field and not self.names(field):
            field = field[: max(field.rfind("."), field.rfind("["), 0)]
        return self._reader.line(field) if field else None

    def _add(self, problems: Any) -> None:
        self.problems += filter(self._reader.certain, problems)


def filled(spec: run_pb2.RunSpec) -> run_pb2.RunSpec:
    """Copy of a run spec with every default but the addresses of services, which only who runs it knows."""
    copy = fill_defaults(spec)
    copy.services.CopyFrom(spec.services)
    return copy


def merge(into: Message, over: Message, given: Callable[[str], bool], path: str = "") -> None:
    """Put what ``over`` says in place of what ``into`` says: mappings by their fields, lists as a whole.

    Args:
        into: is changed.
        over: a message of the same kind.
        given: whether ``over`` says something of a field; what it says it has not (``null``) is taken out.
        path: where the messages stand, with a dot behind, empty for the spec.
    """
    for field in over.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        if not given(name):
            continue
        new = getattr(over, field.name)
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map and new:
            _merge_map(getattr(into, field.name), new, given, name)
        elif field.message_type is not None and not field.is_repeated and over.HasField(field.name):
            getattr(into, field.name).SetInParent()
            merge(getattr(into, field.name), new, given, f"{name}.")
        else:
            replace_field(into, over, field.name)


def replace_field(into: Message, other: Message, name: str) -> None:
    """Give one field of a message the value that it has in another of the same kind, or none."""
    part = type(other)()
    part.CopyFrom(other)
    for field, _ in other.ListFields():
        if field.name != name:
            part.ClearField(field.name)
    into.ClearField(name)
    into.MergeFrom(part)


def lacks_labels(spec: run_pb2.RunSpec) -> bool:
    """Whether a spec asks for DPO and names nothing to learn from: those are the labels of its arm."""
    return spec.HasField("dpo") and not spec.dpo.data and not spec.dpo.HasField("stored")


def label_problems(study: StudySpec, arm: study_pb2.StudyArm, merged: run_pb2.RunSpec) -> Iterator[Problem]:
    """Whether what an arm learns from, and whose labels it names, belong together. Fields are those of an arm."""
    labelled, field = labellers_of(arm), "labels" if arm.labels else "labels_by_dimension"
    fits = facts.needs_preference_model(fill_defaults(merged))
    if labelled and not fits and not lacks_labels(merged):
        yield Problem(
            field,
            "names whose labels it learns from, and this arm learns from none: it has no preference model "
            "(reward.preference_weight, ppo.algorithm, or no RL) and no `dpo: {}`. Leave it out",
            ("run",),
        )
    if lacks_labels(merged) and labelled and len(stored_of(study, arm)) != 1:
        yield Problem(field, "DPO learns from the labels of one labeller: name it by `labels`", ("run",))
    if arm.after and fits and merged.policy.chat_template and not merged.preference_model.model:
        yield Problem(
            "after",
            "starts from a policy that has policy.chat_template in it, and its preference model would be fitted from a "
            "model without: name one with a chat template, run.preference_model.model, and have it served",
            ("run",),
        )
    if labelled and fits and merged.comparisons.stored:
        yield Problem("run.comparisons.stored", f"is what {field} says: leave one out", (field,))


def _labelled(spec: run_pb2.RunSpec, stored: Sequence[run_pb2.StoredComparisons]) -> run_pb2.RunSpec:
    """Copy of a spec that learns from these labels, by DPO where that has nothing else to learn from."""
    copy = run_pb2.RunSpec()
    copy.CopyFrom(spec)
    if lacks_labels(spec) and len(stored) == 1:
        copy.dpo.stored.CopyFrom(stored[0])
    if stored and facts.needs_preference_model(fill_defaults(spec)):
        return with_stored(copy, stored)
    return copy


def _merge_map(into: Any, new: Any, given: Callable[[str], bool], name: str) -> None:
    for key, value in new.items():
        if isinstance(value, Message):
            merge(into[key], value, given, f"{name}.{key}.")
        else:
            into[key] = value


def _without_reinforcement(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """Take out of a spec what only RL uses; what is wrong where nothing would be left."""
    if spec.HasField("revision") or not any(
        spec.HasField(section) for section in ("pretraining", "supervised", "dpo", "kto")
    ):
        what = "revision asks the judge" if spec.HasField("revision") else "it would learn from nothing else"
        yield Problem("ppo", f"takes RL out of this arm, and {what}: write `ppo: {{steps: 0}}` for no step of it")
        return
    for section in ("prompts", "judge"):
        spec.ClearField(section)

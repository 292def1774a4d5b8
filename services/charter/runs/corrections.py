"""What a run has done already depends on its spec: which corrections of the spec leave it valid."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from charter.runs.artifacts import CHECKPOINTS, has_learned, stages_under_way
from charter.v1 import run_pb2

_MODEL = ("seed", "policy.model", "policy.chat_template", "policy.eos_token")
_TUNED = (*_MODEL, "pretraining", "supervised")
_REVISED = tuple(f"revision.{name}" for name in ("dimensions", "prompts", "rounds", "accept", "critique_tokens"))
_LEARNING = ("revision.learning", "revision.helpful", "revision.helpful_share")
_REVISION_DONE = (*_TUNED, *_REVISED, *_LEARNING, "revision.on_no_gain")
_START = (*_REVISION_DONE, "dpo", "kto")
_SAMPLED = (*_START, "sampling", "prompts.train", "prompts.train_weights", "prompts.max_prompt_tokens", "feedback")
_PAIRS = (*_SAMPLED, "comparisons.pairs", "comparisons.stored")
_JUDGE_FIELDS = ("model", "engine", "constitution", "method", "ensemble_size", "calibration")
_JUDGE = tuple(f"judge.{name}" for name in _JUDGE_FIELDS)
_LABELS = (*_PAIRS, *_JUDGE, "prompts.held_out", "comparisons.held_out_fraction")
# What only the last stage reads.
_LAST = ("evaluation.compare",)
# Whose prompts are not learned.
_HELD_OUT = ("prompts.held_out", "prompts.max_prompt_tokens")
_SUPERVISED = (*_TUNED, *_HELD_OUT)
_DPO = (*_REVISION_DONE, "dpo", *_HELD_OUT)
_KTO = (*_START, *_HELD_OUT)
_GATE = ("gate_prompts", "critique_tokens", "dimensions")
_GATED = (
    *(*_TUNED, *_JUDGE, *(f"revision.{name}" for name in _GATE), "sampling", "prompts"),
    *(f"evaluation.{name}" for name in ("prompts", "every_steps", "watched_prompts")),
)
# Stages that have checkpoints of their own in a folder of this name, and the parts of the spec that these depend on.
_UNDER_WAY = {
    "pretraining": ("it learns from text", (*_MODEL, "pretraining")),
    "supervised": ("it learns from conversations", _SUPERVISED),
    "revised": ("it learns from revisions", _REVISION_DONE),
    "dpo": ("it learns from comparisons", _DPO),
    "kto": ("it learns from thumbs", _KTO),
}
# What a stage leaves in the run's folder, and the parts of the spec that it was made by.
_DONE = (
    ("judge_check.json", "its judge is measured", (*_JUDGE, "judge.labelled_pairs", "judge.labelled_pairs_limit")),
    ("pretraining.json", "it has learned from text", (*_MODEL, "pretraining")),
    ("supervised.json", "it is fine-tuned", _SUPERVISED),
    ("revision/gate_answers.jsonl", "its gate has begun", _GATED),
    ("revision/answers.jsonl", "its answers are being revised", (*_TUNED, *_REVISED, "sampling", "prompts", *_JUDGE)),
    ("revision.json", "its answers are revised", (*_TUNED, *_REVISED, "revision.on_no_gain", "prompts", *_JUDGE)),
    ("revised.json", "it has learned from revisions", _REVISION_DONE),
    ("dpo.json", "it has learned from comparisons", _DPO),
    ("kto.json", "it has learned from thumbs", _KTO),
    ("pairs.jsonl", "its pairs are sampled", _PAIRS),
    ("labels.jsonl", "its pairs are judged", _LABELS),
    ("preference_fit.json", "its preference model is fitted", (*_LABELS, "preference_model")),
    (
        "answers_before.jsonl",
        "its held-out prompts are answered",
        (*_START, "sampling", "prompts.held_out", "prompts.max_prompt_tokens", "evaluation.prompts"),
    ),
)


def conflicts(folder: Path, before: run_pb2.RunSpec, after: run_pb2.RunSpec) -> list[str]:
    """Why the run in ``folder`` cannot go on by ``after`` instead of ``before``, both filled; empty when it can."""
    changed = sorted(_changed(before, after))
    if changed and set(changed) == set(_within(changed, _LAST)):
        # Whose own files say what of it must stay.
        return []
    stages = stages_under_way(folder)
    if has_learned(folder / CHECKPOINTS) or not _UNDER_WAY.keys() >= set(stages):
        return ["it has learned already: its checkpoint depends on the spec that it was made by"]
    if before.name != after.name:
        return [f"its name stays {before.name}, and the new spec says {after.name}"]
    found = []
    for file, done, parts in _DONE:
        if (folder / file).exists() and (touched := _touched(changed, parts)):
            found.append(f"{done} already, by another {touched}")
    for stage in stages:
        does, parts = _UNDER_WAY[stage]
        if touched := _touched(changed, parts):
            checkpoints = folder / CHECKPOINTS / stage
            found.append(
                f"{does} already, by another {touched} (to have this stage learn from its beginning by the new spec, "
                f"delete {checkpoints})"
            )
    return found


def _touched(changed: Iterable[str], parts: Iterable[str]) -> str:
    """Those of the changed fields that are in one of the parts, in words."""
    return ", ".join(_within(changed, parts))


def _within(changed: Iterable[str], parts: Iterable[str]) -> list[str]:
    parts = list(parts)
    return [field for field in changed if any(field == part or field.startswith(f"{part}.") for part in parts)]


def _changed(before: run_pb2.RunSpec, after: run_pb2.RunSpec) -> set[str]:
    """Paths of the fields that differ; a list is one field."""
    one, other = dict(_fields(_as_dict(before))), dict(_fields(_as_dict(after)))
    return {field for field in one.keys() | other.keys() if one.get(field) != other.get(field)}


def _as_dict(spec: run_pb2.RunSpec) -> Mapping[str, Any]:
    return json_format.MessageToDict(spec, preserving_proto_field_name=True)


def _fields(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        # A section that is there and empty is another than none.
        if isinstance(value, Mapping) and value:
            yield from _fields(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value

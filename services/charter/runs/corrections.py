"""What a run has done already depends on its spec: which corrections of the spec leave it valid."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from charter.runs.artifacts import has_checkpoint
from charter.v1 import run_pb2

_MODEL = ("seed", "policy.model", "policy.chat_template", "policy.eos_token")
_TUNED = (*_MODEL, "pretraining", "supervised")
_REVISED = ("revision.dimensions", "revision.prompts", "revision.rounds", "revision.accept")
_LEARNING = ("revision.learning", "revision.helpful", "revision.helpful_share")
_REVISION_DONE = (*_TUNED, *_REVISED, *_LEARNING, "revision.on_no_gain")
_START = (*_REVISION_DONE, "dpo", "kto")
_SAMPLED = (*_START, "sampling", "prompts.train", "prompts.train_weights", "prompts.max_prompt_tokens", "feedback")
_PAIRS = (*_SAMPLED, "comparisons.pairs")
_JUDGE_FIELDS = ("model", "engine", "constitution", "method", "ensemble_size", "calibration")
_JUDGE = tuple(f"judge.{name}" for name in _JUDGE_FIELDS)
_LABELS = (*_PAIRS, *_JUDGE, "prompts.held_out", "comparisons.held_out_fraction")
# Whose prompts are not learned.
_HELD_OUT = ("prompts.held_out", "prompts.max_prompt_tokens")
# What a stage leaves in the run's folder, and the parts of the spec that it was made by.
_DONE = (
    ("judge_check.json", "its judge is measured", (*_JUDGE, "judge.labelled_pairs", "judge.labelled_pairs_limit")),
    ("pretraining.json", "it has learned from text", (*_MODEL, "pretraining")),
    ("supervised.json", "it is fine-tuned", (*_TUNED, *_HELD_OUT)),
    (
        "answers_revision_gate.json",
        "its gate has begun",
        (*_TUNED, "sampling", "prompts", "revision.dimensions", "revision.gate_prompts", *_JUDGE),
    ),
    ("revision/answers.jsonl", "its answers are being revised", (*_TUNED, *_REVISED, "sampling", "prompts", *_JUDGE)),
    ("revision.json", "its answers are revised", (*_TUNED, *_REVISED, "revision.on_no_gain", "prompts", *_JUDGE)),
    ("revised.json", "it has learned from revisions", _REVISION_DONE),
    ("dpo.json", "it has learned from comparisons", (*_REVISION_DONE, "dpo", *_HELD_OUT)),
    ("kto.json", "it has learned from thumbs", (*_START, *_HELD_OUT)),
    ("pairs.jsonl", "its pairs are sampled", _PAIRS),
    ("labels.jsonl", "its pairs are judged", _LABELS),
    ("preference_fit.json", "its preference model is fitted", (*_LABELS, "preference_model")),
    (
        "answers_before.json",
        "its held-out prompts are answered",
        (*_START, "sampling", "prompts.held_out", "prompts.max_prompt_tokens", "evaluation.prompts"),
    ),
)


def conflicts(folder: Path, before: run_pb2.RunSpec, after: run_pb2.RunSpec) -> list[str]:
    """Why the run in ``folder`` cannot go on by ``after`` instead of ``before``, both filled; empty when it can."""
    if has_checkpoint(folder):
        return ["it has learned already: its checkpoint depends on the spec that it was made by"]
    if before.name != after.name:
        return [f"its name stays {before.name}, and the new spec says {after.name}"]
    changed = sorted(_changed(before, after))
    found = []
    for file, done, parts in _DONE:
        touched = [field for field in changed if any(field == part or field.startswith(f"{part}.") for part in parts)]
        if touched and (folder / file).exists():
            found.append(f"{done} already, by another {', '.join(touched)}")
    return found


def _changed(before: run_pb2.RunSpec, after: run_pb2.RunSpec) -> set[str]:
    """Paths of the fields that differ; a list is one field."""
    one, other = dict(_fields(_as_dict(before))), dict(_fields(_as_dict(after)))
    return {field for field in one.keys() | other.keys() if one.get(field) != other.get(field)}


def _as_dict(spec: run_pb2.RunSpec) -> Mapping[str, Any]:
    return json_format.MessageToDict(spec, preserving_proto_field_name=True)


def _fields(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value

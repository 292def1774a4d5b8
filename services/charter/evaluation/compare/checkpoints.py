"""Checkpoints of runs as models of an evaluation."""

from collections.abc import Collection
from pathlib import Path

from charter.hashing import stable_number
from charter.listed import listed
from charter.runs.artifacts import checkpoints_of, learned_of
from charter.spec.load import spec_from_json
from charter.v1 import evaluation_pb2


def exported(folder: Path, model: evaluation_pb2.EvaluatedModel) -> Path:
    """Where the model of a checkpoint lies in the folder of the evaluation once it was written."""
    run = Path(model.run)
    return folder / "checkpoints" / f"{run.name}-step-{model.step:06d}-{stable_number(str(run)):016x}"


def checkpoint_problem(folder: Path, model: evaluation_pb2.EvaluatedModel) -> str:
    """Why the checkpoint that a model names cannot answer; empty where it can.

    Raises ``ValueError`` for files of the run that are damaged, ``OSError``.
    """
    run = Path(model.run)
    if exported(folder, model).is_dir():
        return ""
    steps = checkpoints_of(run)
    if model.step in steps:
        start = _start(run)
        missing = start.startswith("/") and not Path(start).is_dir()
        advice = "its configuration and tokenizer are needed. Evaluate where the run was"
        return f"what the run in {run} learned from, {start}, is not on this machine: {advice}" if missing else ""
    if not steps:
        return f"the run in {run} has no checkpoint: leave step out to take its policy"
    return f"the run in {run} has no checkpoint of step {model.step}; it has {_those(steps)}"


def _start(run: Path) -> str:
    """Hub id or folder of the model that has learned last."""
    if learned := learned_of(run):
        return str(run / learned[-1])
    return spec_from_json((run / "spec.json").read_text(encoding="utf-8")).policy.model


def _those(steps: Collection[int]) -> str:
    return f"{'that' if len(steps) == 1 else 'those'} of {listed([str(step) for step in steps])}"

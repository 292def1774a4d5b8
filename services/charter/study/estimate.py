"""How long a study takes, from what was measured: its own runs that are done, and runs before it that did the same."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from google.protobuf import json_format

from charter.spec.defaults import fill_defaults
from charter.spec.load import spec_from_json
from charter.state_files import StateFileError, read_json
from charter.study.folder import StudyRun
from charter.v1 import run_pb2

_ADVICE = "Bring it back from a copy"
_EVALUATING = "evaluating"


def seconds_of(run: Path) -> dict[str, float]:
    """Of each phase of a run, by its folder; all attempts together; none where the folder is not here.

    Raises ``StateFileError``.
    """
    file = run / "run.json"
    return read_json(file, lambda found: dict(found["phase_seconds"]), _ADVICE) if file.is_file() else {}


def seconds_by_arm(
    arms: Mapping[str, run_pb2.RunSpec], runs: Mapping[tuple[str, int], StudyRun], runs_folder: Path
) -> dict[str, float]:
    """Mean seconds of a run of each arm: of its runs that are done, else of earlier ones that did the same.

    Arms of which neither is known are left out.
    """
    found: dict[str, list[float]] = {}
    for run in runs.values():
        if run.succeeded and run.seconds:
            found.setdefault(run.arm, []).append(run.seconds)
    work = {name: _work(spec) for name, spec in arms.items() if name not in found}
    if work:
        for spec, seconds in _finished(runs_folder):
            same = _work(spec)
            for name in (name for name, one in work.items() if one == same):
                found.setdefault(name, []).append(seconds)
    return {name: fmean(seconds) for name, seconds in found.items()}


def seconds_a_prompt(folders: Sequence[Path]) -> float | None:
    """What it takes to answer and compare one prompt, as these runs did at their end; None where none has.

    A rough measure of what another judge takes.
    """
    found = []
    for folder in folders:
        seconds, prompts = seconds_of(folder).get(_EVALUATING, 0.0), _evaluated(folder)
        if seconds and prompts:
            found.append(seconds / prompts)
    return fmean(found) if found else None


def _evaluated(folder: Path) -> int:
    file = folder / "evaluation.json"
    return read_json(file, lambda found: len(found["rows"]), _ADVICE) if file.is_file() else 0


def _finished(runs_folder: Path) -> Iterator[tuple[run_pb2.RunSpec, float]]:
    for folder in sorted(runs_folder.iterdir()) if runs_folder.is_dir() else ():
        try:
            record: dict[str, Any] = read_json(folder / "run.json", dict, _ADVICE)
            if record.get("finished"):
                spec = spec_from_json((folder / "spec.json").read_text(encoding="utf-8"))
                yield spec, sum(record["phase_seconds"].values())
        except (OSError, StateFileError, json_format.ParseError, KeyError, UnicodeDecodeError):
            # Of other runs nothing is needed but a hint.
            continue


def _work(spec: run_pb2.RunSpec) -> run_pb2.RunSpec:
    """What of a spec decides how long its run takes: nothing of names, seeds, places, and of whose labels they are."""
    work = fill_defaults(spec)
    for field in ("name", "seed", "services", "checkpoints", "sinks", "failures"):
        work.ClearField(field)
    work.policy.ClearField("engine")
    work.judge.ClearField("engine")
    # The same size, whatever it has learned.
    work.policy.ClearField("model")
    for stored in (*work.comparisons.stored, *([work.dpo.stored] if work.HasField("dpo") else [])):
        stored.ClearField("run_id")
    return work

"""The run folder as the worker writes it: files whole or not at all, and logs that lose at most their last line."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from charter.atomic_files import write_json
from charter.runs import samples
from charter.state_files import read_json

CHECKPOINTS = "checkpoints"
# Of what ``evaluation.compare`` asks for, a folder as that of `charter evaluate`.
COMPARISON = "comparison"
# In the folder of each checkpoint that is whole.
COMPLETE = "COMPLETE"
# How files of labels end that were taken from the store.
_STORED = "_stored.parquet"
# That of before the first step.
_FIRST = "step-000000"
_RECORD_ADVICE = "Bring it back from a copy, or start a new run"


class RunFolderGoneError(RuntimeError):
    """The folder of a run was deleted or emptied while its worker was at work."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"the run's folder {folder} was deleted, emptied or moved while the run was going, with all that it held. "
            "Bring it back and resume the run, or start a new run"
        )


class Artifacts:
    """Paths of a run's folder, and ``run.json``, which is there from the beginning.

    ``run.json`` holds id, versions, constitution_digest, started, finished, phase_seconds, counts, what was left out by
    stage (``left_out``), where too much of that stopped the run (``stops``), what the policy learned before RL
    (``learned``), the sources of its training prompts (``prompt_sources``), at which commits data sets of the hub were
    read (``data``), and of each attempt what it ran on and read (``legs``, ``charter.runs.results.Leg``). Raises
    ``StateFileError`` where it is damaged.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.spec = folder / "spec.json"
        self.events = folder / "events.jsonl"
        self.constitution = folder / "constitution.yaml"
        self.pairs = folder / "pairs.jsonl"
        self.labels = folder / "labels.jsonl"
        self.checkpoints = folder / CHECKPOINTS
        self.policy = folder / "policy"
        self.samples = folder / samples.FILE
        self.comparisons = folder / "comparisons.parquet"
        self.comparison = folder / COMPARISON
        self._record_file = folder / "run.json"
        self.record: dict[str, Any] = {
            "id": run_id,
            "versions": {},
            "constitution_digest": "",
            "started": now(),
            "finished": None,
            "phase_seconds": {},
            "counts": {},
            "left_out": {},
            "stops": [],
            "legs": [],
        }
        if self._record_file.exists():
            self.record |= read_json(self._record_file, _record, _RECORD_ADVICE)
        write_json(self._record_file, self.record)

    def require_folder(self) -> None:
        """Raise ``RunFolderGoneError`` unless what this worker has made is still there."""
        if not self._record_file.exists():
            raise RunFolderGoneError(self.folder)

    def save_record(self) -> None:
        """Write ``run.json``. Raises ``RunFolderGoneError``."""
        self.require_folder()
        write_json(self._record_file, self.record)

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add to the time of a phase; attempts of a run that was resumed add up."""
        leg = self.record["legs"][-1] if self.record["legs"] else {}
        for times in (self.record["phase_seconds"], leg.setdefault("phase_seconds", {})):
            times[phase] = times.get(phase, 0.0) + seconds
        leg["ended"] = now()
        self.save_record()

    def begin_leg(self, attempt: int, **about: Any) -> None:
        """Note an attempt and what it runs on; those before it stay."""
        self.record["legs"].append({"attempt": attempt, "started": now(), **about})
        self.save_record()

    def note_in_leg(self, **about: Any) -> None:
        """Add to what is known of this attempt."""
        self.record["legs"][-1].update(about)
        self.save_record()

    def count(self, **counts: int) -> None:
        """State counts, replacing earlier ones of the same name."""
        self.record["counts"].update(counts)
        self.save_record()

    def left_out(self, name: str) -> Path:
        """File of the rows that were skipped of ``prompts``, ``labelled_pairs`` or other data that the spec names."""
        return self.folder / "left_out" / f"{name}.jsonl"

    def stored(self, section: str) -> Path:
        """Labels that a section of the spec took from the store, as they were then; of ``stored_files``."""
        return self.folder / f"{section}{_STORED}"

    @property
    def learned(self) -> list[str]:
        """Folders of the policies that the learning stages before RL have made, in their order."""
        return list(self.record.get("learned", []))

    def add_learned(self, folder: str) -> None:
        """Note that the policy in this folder, which is whole, is what the stages after it start from."""
        self.record["learned"] = [*self.learned, folder]
        self.save_record()

    def preference_model(self, refreshes: int = 0) -> Path:
        """Folder of the preference model after so many refreshes."""
        return self.folder / _numbered("preference_model", refreshes)

    def preference_fit(self, refreshes: int = 0) -> Path:
        """What the fit after so many refreshes came to; its presence says that the preference model is whole."""
        return self.folder / f"{_numbered('preference_fit', refreshes)}.json"

    def answers(self, name: str) -> Path:
        """Log of held-out answers: ``before`` or ``after`` PPO, or ``watched`` during it."""
        return self.folder / f"answers_{name}.jsonl"


def stored_files(folder: Path) -> list[Path]:
    """Files of the labels that a run took from the store to learn from, in the order of its stages."""
    files = [folder / f"{section}{_STORED}" for section in ("dpo", "kto", "comparisons")]
    return [file for file in files if file.is_file()]


def _record(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("must be a JSON object")
    for part in ("versions", "phase_seconds", "counts", "left_out"):
        if not isinstance(content.get(part, {}), dict):
            raise ValueError(f"{part} must be a JSON object")
    legs = content.get("legs", [])
    if not isinstance(legs, list) or not all(isinstance(leg, dict) for leg in legs):
        raise ValueError("legs must be a list of JSON objects")
    return content


def _numbered(name: str, refreshes: int) -> str:
    return f"{name}-{refreshes}" if refreshes else name


def has_checkpoint(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint of what RL, or a stage before it that is under way, has learned."""
    return has_learned(folder / CHECKPOINTS) or bool(stages_under_way(folder))


def stages_under_way(folder: Path) -> list[str]:
    """Stages before RL that have learned something and are not done, by the names of their checkpoints' folders."""
    done = learned_of(folder)
    folders = sorted((folder / CHECKPOINTS).glob("*/"))
    return [one.name for one in folders if one.name not in done and has_learned(one)]


def learned_of(folder: Path) -> list[str]:
    """``Artifacts.learned`` of a run's folder."""
    file = folder / "run.json"
    return read_json(file, _record, _RECORD_ADVICE).get("learned", []) if file.exists() else []


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """Whole checkpoints of what a run learned last, by step: of RL, else of the stage before it that is under way."""
    under_way = [folder / CHECKPOINTS / name for name in stages_under_way(folder)]
    for place in (folder / CHECKPOINTS, *under_way):
        if found := [one.parent for one in place.glob(f"step-*/{COMPLETE}")]:
            return {int(one.name.removeprefix("step-")): one for one in sorted(found)}
    return {}


def remove_checkpoint(path: Path) -> None:
    """Delete a whole checkpoint. Raises ``OSError``."""
    # Unmarked first, so that a deletion that is cut short leaves no checkpoint that looks complete.
    (path / COMPLETE).unlink()
    shutil.rmtree(path)


def has_learned(checkpoints: Path) -> bool:
    """Whether a folder of checkpoints holds a whole one of after the first step."""
    return any(one.parent.name != _FIRST for one in checkpoints.glob(f"step-*/{COMPLETE}"))


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")

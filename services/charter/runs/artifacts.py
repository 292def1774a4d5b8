"""The run folder as the worker writes it: files whole or not at all, and logs that lose at most their last line."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from charter.atomic_files import write_json
from charter.runs import samples
from charter.state_files import read_json

CHECKPOINTS = "checkpoints"
# In the folder of each checkpoint that is whole.
COMPLETE = "COMPLETE"
# That of before the first step.
_FIRST = "step-000000"


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
    (``learned``), the sources of its training prompts (``prompt_sources``), and at which commits data sets of the hub
    were read (``data``). Raises ``StateFileError`` where it is damaged.
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
        }
        if self._record_file.exists():
            self.record |= read_json(self._record_file, _record, "Bring it back from a copy, or start a new run")
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
        times = self.record["phase_seconds"]
        times[phase] = times.get(phase, 0.0) + seconds
        self.save_record()

    def count(self, **counts: int) -> None:
        """State counts, replacing earlier ones of the same name."""
        self.record["counts"].update(counts)
        self.save_record()

    def left_out(self, name: str) -> Path:
        """File of the rows that were skipped of ``prompts``, ``labelled_pairs`` or other data that the spec names."""
        return self.folder / "left_out" / f"{name}.jsonl"

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


def _record(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("must be a JSON object")
    for part in ("versions", "phase_seconds", "counts", "left_out"):
        if not isinstance(content.get(part, {}), dict):
            raise ValueError(f"{part} must be a JSON object")
    return content


def _numbered(name: str, refreshes: int) -> str:
    return f"{name}-{refreshes}" if refreshes else name


def has_checkpoint(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint of what RL, or a stage before it that is under way, has learned."""
    return has_learned(folder / CHECKPOINTS) or bool(stages_under_way(folder))


def stages_under_way(folder: Path) -> list[str]:
    """Stages before RL that have learned something and are not done, by the names of their checkpoints' folders."""
    file = folder / "run.json"
    advice = "Bring it back from a copy, or start a new run"
    done = read_json(file, _record, advice).get("learned", []) if file.exists() else []
    folders = sorted((folder / CHECKPOINTS).glob("*/"))
    return [one.name for one in folders if one.name not in done and has_learned(one)]


def has_learned(checkpoints: Path) -> bool:
    """Whether a folder of checkpoints holds a whole one of after the first step."""
    return any(one.parent.name != _FIRST for one in checkpoints.glob(f"step-*/{COMPLETE}"))


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")

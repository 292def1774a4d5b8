"""The run folder as the worker writes it: files whole or not at all, and logs that lose at most their last line."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from charter.atomic_files import write_json
from charter.runs import samples

CHECKPOINTS = "checkpoints"
# In the folder of each checkpoint that is whole.
COMPLETE = "COMPLETE"


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
    stage (``left_out``) and where too much of that stopped the run (``stops``).
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.spec = folder / "spec.json"
        self.events = folder / "events.jsonl"
        self.constitution = folder / "constitution.yaml"
        self.pairs = folder / "pairs.jsonl"
        self.labels = folder / "labels.jsonl"
        self.preference_model = folder / "preference_model"
        self.checkpoints = folder / CHECKPOINTS
        self.policy = folder / "policy"
        self.samples = folder / samples.FILE
        self.comparisons = folder / "comparisons.parquet"
        self._record_file = folder / "run.json"
        self.record: dict[str, Any] = (
            json.loads(self._record_file.read_text(encoding="utf-8"))
            if self._record_file.exists()
            else {
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
        )

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

    def answers(self, name: str) -> Path:
        """File of held-out answers: ``before`` or ``after`` PPO, or ``watched`` during it."""
        return self.folder / f"answers_{name}.json"


def has_checkpoint(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint that is whole."""
    return any((folder / CHECKPOINTS).glob(f"step-*/{COMPLETE}"))


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")

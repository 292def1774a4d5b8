"""Weights as files in a folder that the sender and the services share, in place of bytes over gRPC."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from charter.weights.sender import PackedWeights


class SharedFolder:
    """The files of one run in ``parent``; ``close`` removes them, and what an earlier attempt left goes at once."""

    def __init__(self, parent: Path, run_id: str) -> None:
        self._folder = parent / f"weights-{run_id}"
        self.close()

    def put(self, weights: PackedWeights) -> PackedWeights:
        """The same weights, now in the folder too. Raises ``OSError``.

        The file has its name only once it is whole and on the disk. The others stay: a replica that comes back
        meanwhile still asks for them.
        """
        path = self._file(weights)
        self._folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                file.write(weights.blob)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        return replace(weights, path=str(path))

    def keep_only(self, weights: PackedWeights) -> None:
        """Remove all files but these weights and their base; no replica is asked to read others any more."""
        needed = {self._file(weights), *([self._file(weights.base)] if weights.base is not None else [])}
        for other in self._folder.iterdir():
            if other not in needed:
                other.unlink()

    def close(self) -> None:
        """Remove the files; services have read theirs or ask no more."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, weights: PackedWeights) -> Path:
        return self._folder / f"{weights.sha256}.safetensors"

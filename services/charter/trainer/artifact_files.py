"""Files that clients bring to a run and take from it. Every function blocks: call them off the event loop."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from charter.atomic_files import write_bytes
from charter.rpc.errors import StatusError
from charter.runs.artifacts import CHECKPOINTS
from charter.v1 import run_pb2, trainer_pb2

INPUTS = "inputs"
CHUNK_BYTES = 512 * 1024


class UnknownArtifactError(StatusError):
    """A run's folder has no such file."""

    def __init__(self, folder: Path, path: str) -> None:
        super().__init__(grpc.StatusCode.NOT_FOUND, f"{folder} has no file {path}")


def with_stored_files(
    spec: run_pb2.RunSpec, files: Sequence[trainer_pb2.InputFile], artifacts: Path
) -> run_pb2.RunSpec:
    """Copy of ``spec`` that names our copies of the client's files.

    A copy is named by its content, so that a repeated request stores nothing new and runs share what is the same.
    """
    copies: dict[str, str] = {}
    for file in files:
        folder = artifacts / INPUTS / hashlib.sha256(file.content).hexdigest()[:16]
        target = folder / Path(file.path).name
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(target, file.content)
        copies[file.path] = str(target)
    stored = run_pb2.RunSpec()
    stored.CopyFrom(spec)
    for paths in (stored.prompts.train, stored.prompts.held_out):
        paths[:] = [copies.get(path, path) for path in paths]
    for field in ("constitution", "labelled_pairs", "calibration"):
        path = getattr(stored.judge, field)
        setattr(stored.judge, field, copies.get(path, path))
    return stored


def artifacts_of(folder: Path) -> list[trainer_pb2.Artifact]:
    """Every file of a run's folder but its checkpoints."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        trainer_pb2.Artifact(path=relative.as_posix(), size=path.stat().st_size)
        for path in found
        if (relative := path.relative_to(folder)).parts[0] != CHECKPOINTS
    ]


def read_artifact(folder: Path, path: str, offset: int) -> Iterator[bytes]:
    """Chunks of a file from ``offset`` on. Raises ``UnknownArtifactError``, for a path outside the folder too."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise UnknownArtifactError(folder, path)
    with file.open("rb") as opened:
        opened.seek(offset)
        while chunk := opened.read(CHUNK_BYTES):
            yield chunk

"""Files that clients bring to a run and take from it. Every function blocks: call them off the event loop."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc

from charter.atomic_files import write_bytes
from charter.rpc.errors import StatusError
from charter.runs.artifacts import CHECKPOINTS
from charter.spec.data_sources import change_data_files
from charter.v1 import run_pb2, trainer_pb2

INPUTS = "inputs"
CHUNK_BYTES = 512 * 1024
# inputs, a digest, and the file's name.
_COPY_PARTS = 3


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
    return _with_paths(spec, lambda path: copies.get(path, path))


def with_relative_files(spec: run_pb2.RunSpec, artifacts: Path) -> run_pb2.RunSpec:
    """Copy of ``spec`` that names our copies by their place in ``artifacts``, wherever that is.

    Those that an earlier place of ``artifacts`` is named for are recognised when they are here too.
    """

    def relative(path: str) -> str:
        place = Path(*Path(path).parts[-_COPY_PARTS:])
        ours = Path(path).is_absolute() and place.parts[0] == INPUTS and (artifacts / place).is_file()
        return str(place) if ours else path

    return _with_paths(spec, relative)


def with_absolute_files(spec: run_pb2.RunSpec, artifacts: Path) -> run_pb2.RunSpec:
    """The opposite of ``with_relative_files``."""
    return _with_paths(spec, lambda path: str(artifacts / path) if path.startswith(f"{INPUTS}/") else path)


def _with_paths(spec: run_pb2.RunSpec, change: Callable[[str], str]) -> run_pb2.RunSpec:
    changed = run_pb2.RunSpec()
    changed.CopyFrom(spec)
    change_data_files(changed, change)
    for field in ("constitution", "calibration"):
        if path := getattr(changed.judge, field):
            setattr(changed.judge, field, change(path))
    if changed.policy.chat_template:
        changed.policy.chat_template = change(changed.policy.chat_template)
    return changed


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

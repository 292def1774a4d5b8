"""Checkpoints of what learns: whole or not at all, in safetensors and JSON.

A checkpoint is a folder ``step-000012``. It is written under a temporary name, its files are synced to the disk, it is
renamed, and only then marked with ``COMPLETE``, which holds the sha256 of every file.

Weights and moments are written by torch.distributed.checkpoint, a file of shards from each rank, and can be read on any
number of ranks. All ranks call ``save`` and ``restore``; the rest is for rank 0.
"""

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from charter.atomic_files import replacing
from charter.runs.artifacts import COMPLETE, remove_checkpoint
from charter.worker.errors import RunError
from charter.worker.training import ranks
from charter.worker.training.models import named_tensors
from charter.worker.training.trainable import Trainable

logger = logging.getLogger("charter.worker")

_STATE = "state.json"
_TORCH_RNG = "torch_rng.safetensors"


def save(
    learner: Trainable,
    folder: Path,
    step: int,
    progress: Mapping[str, Any],
    add_files: Callable[[Path], None],
    *,
    keep: int,
    stays: Callable[[int], bool],
) -> Path:
    """Write the checkpoint after ``step`` steps, then delete all but the newest ``keep`` complete ones.

    Args:
        learner: what learns; every rank's shards.
        folder: of the run's checkpoints.
        step: names the checkpoint.
        progress: where the loop stands, as JSON; ``newest`` gives it back.
        add_files: writes what else belongs to it into the folder it is given; rank 0 calls it.
        keep: how many stay.
        stays: whether the checkpoint of a step stays whatever came after it.

    Raises:
        RunError: it cannot be written (disk full); older ones are untouched then.
    """
    final = folder_of(folder, step)
    temporary = folder / f".{final.name}.tmp"
    ranks.from_rank_zero(lambda: _make_room(temporary, final))
    steps = {}
    with _no_room_explained(temporary, final):
        for name, (module, optimizer) in learner.learning().items():
            _write(temporary / name, named_tensors(module))
            _write(temporary / f"{name}_optimizer", _moments(module, optimizer))
            steps[name] = _optimizer_steps(module, optimizer)
    digests = {name: digest for part in ranks.collect(_own_digests(temporary)) for name, digest in part.items()}
    ranks.from_rank_zero(lambda: _finish(temporary, final, progress, add_files, steps, digests))
    ranks.from_rank_zero(lambda: _prune(folder, keep, stays))
    return final


@contextmanager
def _no_room_explained(temporary: Path, final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"cannot write checkpoint {final}: {error}. Free space there; older checkpoints are kept"
        ) from error


def _make_room(temporary: Path, final: Path) -> None:
    with _no_room_explained(temporary, final):
        final.parent.mkdir(parents=True, exist_ok=True)
        clean(final.parent)
        temporary.mkdir()


def _finish(
    temporary: Path,
    final: Path,
    progress: Mapping[str, Any],
    add_files: Callable[[Path], None],
    steps: dict[str, dict[str, int]],
    digests: dict[str, str],
) -> None:
    """Add what is not sharded, and give the checkpoint its name and its mark."""
    with _no_room_explained(temporary, final):
        add_files(temporary)
        _add_state(temporary, progress, steps)
        digests = digests | _digests(temporary, [one for one in temporary.iterdir() if one.is_file()])
        _sync(temporary)
        # Left from an attempt that died between the rename and the mark.
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(final.parent)
        with replacing(final / COMPLETE, durable=True) as marker:
            marker.write_text(json.dumps(digests, indent=2))
        _sync(final)


def _add_state(temporary: Path, progress: Mapping[str, Any], steps: dict[str, dict[str, int]]) -> None:
    save_file({"state": torch.get_rng_state()}, temporary / _TORCH_RNG)
    state = {"progress": progress, "optimizer_steps": steps, "rng": _python_rng()}
    (temporary / _STATE).write_text(json.dumps(state))
    for part in temporary.iterdir():
        _sync(part)


def _prune(folder: Path, keep: int, stays: Callable[[int], bool]) -> None:
    for old in complete(folder)[:-keep]:
        if not stays(int(old.name.removeprefix("step-"))):
            remove_checkpoint(old)


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps is."""
    return folder / f"step-{step:06d}"


def complete(folder: Path) -> list[Path]:
    """Checkpoints that are marked complete, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / COMPLETE).is_file())


def clean(folder: Path) -> None:
    """Delete what attempts that died have left half-written."""
    for path in [*folder.glob(".step-*.tmp"), *folder.glob("step-*")]:
        if not (path / COMPLETE).is_file():
            logger.warning("deleting a half-written checkpoint", extra={"path": str(path)})
            shutil.rmtree(path)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is complete and undamaged, with its progress, or None.

    Damaged ones are named in the log and left.
    """
    for path in reversed(complete(folder)):
        if is_undamaged(path):
            progress: dict[str, Any] = json.loads((path / _STATE).read_text())["progress"]
            return path, progress
        logger.error("checkpoint is damaged: a digest differs; trying the one before", extra={"path": str(path)})
    return None


def is_undamaged(path: Path) -> bool:
    """Whether a checkpoint that is complete has the files that were written."""
    files = [one for one in path.rglob("*") if one.is_file() and COMPLETE not in one.name]
    with contextlib.suppress(ValueError):
        return bool(json.loads((path / COMPLETE).read_text()) == _digests(path, files))
    return False


def restore_weights(module: nn.Module, path: Path, name: str) -> None:
    """Put the weights of one part of a checkpoint into a module like it. Raises ``OSError``, ``ValueError``."""
    _read(path / name, named_tensors(module))


def restore(learner: Trainable, path: Path) -> None:
    """Put a checkpoint's weights, optimizers and random states back, whatever the number of ranks that wrote it."""
    state = json.loads((path / _STATE).read_text())
    for name, (module, optimizer) in learner.learning().items():
        restore_weights(module, path, name)
        for key, parameter in module.named_parameters():
            # One that had not learned yet has none, whatever it has by now.
            optimizer.state.pop(parameter, None)
            if key in state["optimizer_steps"][name]:
                optimizer.state[parameter] = {
                    # Fused Adam wants it beside the parameter.
                    "step": torch.tensor(float(state["optimizer_steps"][name][key]), device=parameter.device),
                    "exp_avg": torch.empty_like(parameter),
                    "exp_avg_sq": torch.empty_like(parameter),
                }
        _read(path / f"{name}_optimizer", _moments(module, optimizer))
    torch.set_rng_state(load_file(path / _TORCH_RNG)["state"])
    version, numbers, gaussian = state["rng"]["python"]
    random.setstate((version, tuple(numbers), gaussian))
    kind, keys, position, has_gaussian, cached = state["rng"]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gaussian, cached))


def _moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments by parameter name; a parameter that never had a gradient has none."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
        for moment in ("exp_avg", "exp_avg_sq")
    }


def _optimizer_steps(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    return {
        name: int(optimizer.state[parameter]["step"])
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
    }


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Every rank writes its shards, and syncs them. Raises ``OSError``, whatever rank it happened on."""
    # In this format the shards' places are in the files' headers, and nothing is pickled.
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _in_one_process():
            state_dict_saver.save(tensors, storage_writer=writer, process_group=ranks.objects())
    except CheckpointException as error:
        raise _reason(error) from error


def _read(folder: Path, into: dict[str, Tensor]) -> None:
    """Overwrite tensors with those that ``_write`` wrote. Raises ``OSError`` or ``ValueError``."""
    try:
        with _in_one_process():
            reader = HuggingFaceStorageReader(str(folder))
            state_dict_loader.load(into, storage_reader=reader, process_group=ranks.objects())
    except CheckpointException as error:
        raise _reason(error) from error


def _reason(error: CheckpointException) -> Exception:
    reason = next(iter(error.failures.values()))[0]
    if isinstance(reason, (SafetensorError, RuntimeError)):
        return OSError(str(reason))
    return reason if isinstance(reason, Exception) else OSError(str(reason))


@contextmanager
def _in_one_process() -> Iterator[None]:
    """Without the warning that there is only one: it is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _python_rng() -> dict[str, Any]:
    kind, keys, position, has_gaussian, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gaussian, cached],
    }


def _own_digests(folder: Path) -> dict[str, str]:
    """sha256 of the files that this rank has written."""
    return _digests(folder, sorted(folder.glob(f"*/shard-{ranks.rank() + 1:05d}-*")))


def _digests(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    # Hashing leaves the interpreter's lock, so threads help.
    with ThreadPoolExecutor() as pool:
        return dict(zip((str(path.relative_to(folder)) for path in files), pool.map(_digest, files), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

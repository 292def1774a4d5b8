"""Checkpoints of PPO: whole or not at all, in safetensors and JSON.

A checkpoint is a folder ``step-000012``. It is written under a temporary name, its files are synced to the disk, it is
renamed, and only then marked with ``COMPLETE``, which holds the sha256 of every file.
"""

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from charter.worker import overoptimisation
from charter.worker.errors import RunError
from charter.worker.formulas import Moments
from charter.worker.models import copy_tensors, named_tensors
from charter.worker.overoptimisation import Measurement
from charter.worker.rollouts import Batch
from charter.worker.step import Controls
from charter.worker.unconsumed import read_batches, write_batches
from charter.worker.update import Learner

logger = logging.getLogger("charter.worker")

_COMPLETE = "COMPLETE"
_STATE = "state.json"
_TORCH_RNG = "torch_rng.safetensors"
_UNCONSUMED = "unconsumed.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where PPO stands, besides the tensors."""

    # PPO steps that are done.
    step: int
    # Prompts that were taken from the endless stream.
    prompt_cursor: int
    # Version that the policy service has, or will be sent, for the actor's weights.
    weight_version: int
    controls: Controls
    # What the judge thought in the course of the run, oldest first.
    measured: tuple[Measurement, ...] = ()


def save(folder: Path, learner: Learner, progress: Progress, unconsumed: Mapping[int, Batch], keep: int) -> Path:
    """Write a checkpoint, then delete all but the newest ``keep`` complete ones and the one that the judge liked best.

    ``unconsumed`` are answers of coming steps, by step, that older weights may have written. Raises ``RunError`` when
    the checkpoint cannot be written (disk full); older ones are untouched then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    final = folder_of(folder, progress.step)
    temporary = folder / f".{final.name}.tmp"
    temporary.mkdir()
    try:
        steps = {}
        for name, (module, optimizer) in _learning(learner).items():
            _write(temporary / f"{name}.safetensors", named_tensors(module))
            _write(temporary / f"{name}_optimizer.safetensors", _moments(module, optimizer))
            steps[name] = _optimizer_steps(module, optimizer)
        _write(temporary / _TORCH_RNG, {"state": torch.get_rng_state()})
        state = {"progress": asdict(progress), "optimizer_steps": steps, "rng": _python_rng()}
        (temporary / _STATE).write_text(json.dumps(state))
        write_batches(temporary / _UNCONSUMED, unconsumed)
        for file in temporary.iterdir():
            _sync(file)
        digests = _digests(temporary)
        _sync(temporary)
        # Left from an attempt that died between the rename and the mark.
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(folder)
        marker = final / f".{_COMPLETE}.tmp"
        marker.write_text(json.dumps(digests, indent=2))
        _sync(marker)
        marker.rename(final / _COMPLETE)
        _sync(final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"cannot write checkpoint {final}: {error}. Free space there; older checkpoints are kept"
        ) from error
    best = folder_of(folder, overoptimisation.best(progress.measured).step) if progress.measured else None
    for old in complete(folder)[:-keep]:
        if old == best:
            continue
        # Unmarked first, so that a deletion that is cut short leaves no checkpoint that looks complete.
        (old / _COMPLETE).unlink()
        shutil.rmtree(old)
    return final


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps is."""
    return folder / f"step-{step:06d}"


def complete(folder: Path) -> list[Path]:
    """Checkpoints that are marked complete, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _COMPLETE).is_file())


def clean(folder: Path) -> None:
    """Delete what attempts that died have left half-written."""
    for path in [*folder.glob(".step-*.tmp"), *folder.glob("step-*")]:
        if not (path / _COMPLETE).is_file():
            logger.warning("deleting a half-written checkpoint", extra={"path": str(path)})
            shutil.rmtree(path)


def newest(folder: Path) -> tuple[Path, Progress] | None:
    """The newest checkpoint that is complete and undamaged, or None. Damaged ones are named in the log and left."""
    for path in reversed(complete(folder)):
        if json.loads((path / _COMPLETE).read_text()) == _digests(path):
            return path, _progress(json.loads((path / _STATE).read_text())["progress"])
        logger.error("checkpoint is damaged: a digest differs; trying the one before", extra={"path": str(path)})
    return None


def restore(path: Path, learner: Learner) -> None:
    """Put a checkpoint's weights, optimizers and random states back."""
    state = json.loads((path / _STATE).read_text())
    for name, (module, optimizer) in _learning(learner).items():
        copy_tensors(path / f"{name}.safetensors", named_tensors(module))
        for key, parameter in module.named_parameters():
            if key in state["optimizer_steps"][name]:
                optimizer.state[parameter] = {
                    # Fused Adam wants it beside the parameter.
                    "step": torch.tensor(float(state["optimizer_steps"][name][key]), device=parameter.device),
                    "exp_avg": torch.empty_like(parameter),
                    "exp_avg_sq": torch.empty_like(parameter),
                }
        copy_tensors(path / f"{name}_optimizer.safetensors", _moments(module, optimizer))
    torch.set_rng_state(load_file(path / _TORCH_RNG)["state"])
    version, numbers, gaussian = state["rng"]["python"]
    random.setstate((version, tuple(numbers), gaussian))
    kind, keys, position, has_gaussian, cached = state["rng"]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gaussian, cached))


def unconsumed(path: Path) -> dict[int, Batch]:
    """A checkpoint's answers of coming steps, by step."""
    return read_batches(path / _UNCONSUMED)


def _progress(state: dict[str, Any]) -> Progress:
    kl_coefficient, scores = state.pop("controls")
    measured = tuple(Measurement(*one) for one in state.pop("measured"))
    return Progress(**state, controls=Controls(kl_coefficient, Moments(*scores)), measured=measured)


def _learning(learner: Learner) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    learning: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {"actor": (learner.actor, learner.actor_optimizer)}
    if learner.critic is not None and learner.critic_optimizer is not None:
        learning["critic"] = (learner.critic, learner.critic_optimizer)
    return learning


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


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _python_rng() -> dict[str, Any]:
    kind, keys, position, has_gaussian, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gaussian, cached],
    }


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but the mark."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and _COMPLETE not in path.name)
    # Hashing leaves the interpreter's lock, so threads help.
    with ThreadPoolExecutor() as pool:
        return dict(zip((path.name for path in files), pool.map(_digest, files), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

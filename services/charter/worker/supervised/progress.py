"""Where a stage stands that learns from what is written, and how a checkpoint keeps it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from charter.runs.results import HeldOutLoss
from charter.worker.supervised.learner import Learner
from charter.worker.training import checkpoint

_MEASURED = TypeAdapter(tuple[HeldOutLoss, ...])


@dataclass(frozen=True, slots=True)
class Progress:
    """Optimiser steps that are done, and what was measured on the way, oldest first."""

    step: int = 0
    measured: tuple[HeldOutLoss, ...] = ()

    @property
    def best(self) -> HeldOutLoss | None:
        """The first of those with the lowest loss; None where nothing is held out."""
        return min(self.measured, key=lambda one: one.loss, default=None)

    def stopped(self, patience: int) -> bool:
        """Whether so many measurements in a row were not the lowest so far."""
        losses = [one.loss for one in self.measured]
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def save(learner: Learner[Any], folder: Path, progress: Progress) -> Path:
    """Write a checkpoint; every rank calls it. The newest stays, and that of the lowest loss.

    Raises as ``checkpoint.save``.
    """
    best = progress.best
    state = {"step": progress.step, "measured": [asdict(one) for one in progress.measured]}

    def stays(step: int) -> bool:
        return best is not None and step == best.step

    return checkpoint.save(learner, folder, progress.step, state, _nothing, keep=1, stays=stays)


def newest(folder: Path) -> tuple[Path, Progress] | None:
    """The newest checkpoint that is complete and undamaged, or None."""
    found = checkpoint.newest(folder)
    if found is None:
        return None
    path, state = found
    return path, Progress(state["step"], _MEASURED.validate_python(state["measured"]))


def _nothing(folder: Path) -> None:
    """No other files belong to it."""

"""Where PPO stands, and how a checkpoint keeps it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from charter.runs.results import LeftOut
from charter.worker.reinforcement import overoptimisation
from charter.worker.reinforcement.formulas import Moments
from charter.worker.reinforcement.overoptimisation import Measurement
from charter.worker.reinforcement.sampling.rollouts import Batch
from charter.worker.reinforcement.sampling.unconsumed import read_batches, write_batches
from charter.worker.reinforcement.step import Controls
from charter.worker.reinforcement.update import Learner
from charter.worker.training import checkpoint

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
    # What was left out so far, by stage.
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)


def save_progress(
    learner: Learner,
    folder: Path,
    progress: Progress,
    unconsumed: Mapping[int, Batch],
    keep: int,
    curve_every: int = 0,
) -> Path:
    """Write a checkpoint; every rank calls it. The newest ``keep`` stay, the one that the judge liked best, and those
    of every ``curve_every`` steps, none with 0.

    ``unconsumed`` are answers of coming steps, by step, that older weights may have written. Raises as
    ``checkpoint.save``.
    """
    best = overoptimisation.best(progress.measured).step if progress.measured else None

    def stays(step: int) -> bool:
        return step == best or (step > 0 and curve_every > 0 and step % curve_every == 0)

    return checkpoint.save(
        learner,
        folder,
        progress.step,
        asdict(progress),
        lambda temporary: write_batches(temporary / _UNCONSUMED, unconsumed),
        keep=keep,
        stays=stays,
    )


def newest_progress(folder: Path) -> tuple[Path, Progress] | None:
    """The newest checkpoint that is complete and undamaged, or None."""
    found = checkpoint.newest(folder)
    return None if found is None else (found[0], _progress(found[1]))


def unconsumed_batches(path: Path) -> dict[int, Batch]:
    """A checkpoint's answers of coming steps, by step."""
    return read_batches(path / _UNCONSUMED)


def _progress(state: dict[str, Any]) -> Progress:
    kl_coefficient, scores = state.pop("controls")
    measured = tuple(Measurement(*one) for one in state.pop("measured"))
    left_out = {stage: LeftOut(**counted) for stage, counted in state.pop("left_out", {}).items()}
    controls = Controls(kl_coefficient, Moments(*scores))
    return Progress(**state, controls=controls, measured=measured, left_out=left_out)

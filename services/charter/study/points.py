"""Which policies of a study are measured: of each run that has ended well its last one, and those on the way there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from charter.spec.facts import needs_reinforcement
from charter.study.folder import StudyRun
from charter.study.spec import StudySpec
from charter.v1 import run_pb2


@dataclass(frozen=True, slots=True)
class Point:
    """A policy: of an arm, with a seed, after ``step`` steps of RL, or at the end (None).

    ``model`` is what the evaluation calls it. What all arms start from is ``charter.study.spec.START``, and no point.
    """

    arm: str
    seed: int
    step: int | None
    model: str


def points_of(spec: StudySpec, runs: Mapping[tuple[str, int], StudyRun], steps: Mapping[str, int]) -> list[Point]:
    """Of the runs that have succeeded, by arm, seed and step, the end last.

    Args:
        spec: filled.
        runs: by arm and seed.
        steps: of each arm, as ``steps_of``.
    """
    return [
        point
        for arm in spec.arms
        for seed in spec.seeds
        if (arm.name, seed) in runs and runs[arm.name, seed].succeeded
        for point in _points(spec, arm.name, seed, steps[arm.name])
    ]


def all_points(spec: StudySpec, steps: Mapping[str, int]) -> list[Point]:
    """Those that there are when every run has succeeded."""
    return [
        point for arm in spec.arms for seed in spec.seeds for point in _points(spec, arm.name, seed, steps[arm.name])
    ]


def steps_of(arms: Mapping[str, run_pb2.RunSpec]) -> dict[str, int]:
    """Steps of RL by arm; 0 for one that has none."""
    return {name: spec.ppo.steps if needs_reinforcement(spec) else 0 for name, spec in arms.items()}


def steps_between(spec: StudySpec, steps: int) -> range:
    """After which steps before the end an arm with so many is measured."""
    every = spec.evaluation.every_steps
    return range(every, steps, every) if every else range(0)


def missing_of(spec: StudySpec, runs: Mapping[tuple[str, int], StudyRun]) -> list[tuple[str, int, str]]:
    """Arm and seed of each run that has made no policy, and why."""
    found = []
    for arm in spec.arms:
        for seed in spec.seeds:
            run = runs.get((arm.name, seed))
            if run is None:
                found.append((arm.name, seed, "not begun"))
            elif not run.succeeded:
                state = (run.state or "pending").lower()
                found.append((arm.name, seed, f"{state}: {run.error}" if run.error else state))
    return found


def _points(spec: StudySpec, arm: str, seed: int, steps: int) -> Iterator[Point]:
    for step in steps_between(spec, steps):
        yield Point(arm, seed, step, f"{arm}-{seed}-step-{step}")
    yield Point(arm, seed, None, f"{arm}-{seed}")

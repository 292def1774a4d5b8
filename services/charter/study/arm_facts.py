"""What stands beside the figures of an arm: labels, length of its answers, how far it moved, time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from charter.evaluation.compare.folder import Answer
from charter.runs.folder import RunFolder, is_run_folder, read_run_folder
from charter.study.folder import StudyRun
from charter.study.points import Point
from charter.study.spec import START, StudySpec
from charter.v1 import study_pb2


@dataclass(frozen=True, slots=True)
class ArmFacts:
    """An arm, or the start; numbers are means over its seeds, and None where they are not known."""

    arm: str
    # Arm whose policy it starts from; empty for the start of all.
    after: str
    # Whose labels by dimension; one without a name is all of them.
    labellers: dict[str, str]
    # Those whose run has succeeded, of so many.
    seeds: tuple[int, ...]
    wanted: int
    # Labels that the preference model was fitted to, held-out ones among them.
    labels: float | None
    # Share of the held-out ones that the preference model agrees with: 0.5 has learned nothing.
    agreement: float | None
    # Of the answers that were measured.
    tokens: float | None
    # Share of them that the token limit ended.
    cut_off: float | None
    # To what the run started from in the last step of RL, nats per answer.
    kl: float | None
    minutes: float | None


def arm_facts(
    spec: StudySpec,
    runs: Mapping[tuple[str, int], StudyRun],
    points: Sequence[Point],
    answers: Mapping[tuple[str, str, int], Answer],
) -> tuple[ArmFacts, ...]:
    """Of the start, and of the arms in their order. Raises ``RunFolderError`` for a damaged folder of a run."""
    said: dict[str, list[Answer]] = {}
    for one in answers.values():
        if not one.failure:
            said.setdefault(one.model, []).append(one)
    start = ArmFacts(START, "", {}, (), 0, None, None, *_answered(said.get(START, ())), None, None)
    return start, *(_facts(spec, arm, runs, points, said) for arm in spec.arms)


def _facts(
    spec: StudySpec,
    arm: study_pb2.StudyArm,
    runs: Mapping[tuple[str, int], StudyRun],
    points: Sequence[Point],
    said: Mapping[str, Sequence[Answer]],
) -> ArmFacts:
    done = [run for seed in spec.seeds if (run := runs.get((arm.name, seed))) is not None and run.succeeded]
    folders = [read_run_folder(Path(run.artifacts)) for run in done if is_run_folder(Path(run.artifacts))]
    ends = [point.model for point in points if point.arm == arm.name and point.step is None]
    return ArmFacts(
        arm.name,
        arm.after,
        {"": arm.labels} if arm.labels else dict(sorted(arm.labels_by_dimension.items())),
        tuple(run.seed for run in done),
        len(spec.seeds),
        _mean(folders, _labels),
        _mean(folders, _agreement),
        *_answered([one for model in ends for one in said.get(model, ())]),
        _mean(folders, _kl),
        fmean(run.seconds for run in done) / 60 if done else None,
    )


def _answered(answers: Sequence[Answer]) -> tuple[float | None, float | None]:
    """Mean tokens, where all were counted, and the share that was cut off."""
    counted = [one.tokens for one in answers if one.tokens is not None]
    tokens = fmean(counted) if counted and len(counted) == len(answers) else None
    return tokens, fmean(one.cut_off for one in answers) if answers else None


def _mean(folders: Sequence[RunFolder], number: Callable[[RunFolder], float | None]) -> float | None:
    """None unless every run has it."""
    found = [one for folder in folders if (one := number(folder)) is not None]
    return fmean(found) if found and len(found) == len(folders) else None


def _labels(run: RunFolder) -> float | None:
    return None if run.preference_fit is None else run.preference_fit.train_pairs + run.preference_fit.held_out_pairs


def _agreement(run: RunFolder) -> float | None:
    return None if run.preference_fit is None else run.preference_fit.held_out.accuracy


def _kl(run: RunFolder) -> float | None:
    steps = run.ppo_steps
    return steps[max(steps)].get("kl_k1") if steps else None

"""A made-up folder of a study: arms whose policies have ratings that a test decides."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from charter.atomic_files import write_json, write_text
from charter.chat import ChatMessage
from charter.evaluation.compare.folder import Answer, Compared, answer_line, compared_line
from charter.evaluation.compare.prompts import EvaluatedPrompt
from charter.evaluation.compare.spec import fill_defaults
from charter.evaluation.figures.ratings import ELO
from charter.outcomes import outcome_of
from charter.runs.results import Calibration, PreferenceFit, write_result
from charter.study.folder import StudyFolder, StudyRun
from charter.study.points import Point, points_of
from charter.study.spec import START, StudySpec, asked, spec_to_json
from charter.v1 import evaluation_pb2, judge_pb2, run_pb2, study_pb2
from google.protobuf import json_format
from scipy.special import expit

AXES = ("helpful", "harmless")
STEPS = 12
EVERY = 4


@dataclass(frozen=True)
class MadeArm:
    """An arm: its true ratings at its end, and how it is made."""

    across: float
    up: float
    labels: str = ""
    by_dimension: Mapping[str, str] = field(default_factory=dict)
    after: str = ""
    # How its curve bends: by so much further up in the middle, as one that turns harmless by turning useless.
    bend: float = 0.0
    # Tokens of an answer more than the start's 60, on average.
    longer: float = 0.0


ARMS = {
    "rlhf": MadeArm(130, -60, "imported", bend=60, longer=40),
    "rlaif": MadeArm(60, 170, "judge"),
    "mixed": MadeArm(110, 120, by_dimension={"helpful": "imported", "harmless": "judge"}),
    "sft": MadeArm(35, 20),
    "sft-rlaif": MadeArm(40, 90, "judge", after="sft"),
}


def write_study(
    path: Path,
    arms: Mapping[str, MadeArm] = ARMS,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    prompts: int = 120,
    judges: Sequence[str] = ("third",),
    scatter: float = 12.0,
    samples: int = 400,
    failed: Sequence[tuple[str, int]] = (),
    trained: Mapping[str, str] | None = None,
) -> StudyFolder:
    """A study that has been measured, on so many prompts of each axis.

    Args:
        path: of the folder.
        arms: by name.
        seeds: of each arm.
        prompts: of each axis.
        judges: the first sees the truth, the others less of it.
        scatter: of the policies around their arm, in Elo points.
        samples: bootstrap draws.
        failed: arms and seeds whose run failed.
        trained: by arm, the judge that trained it.
    """
    rng = random.Random(5)
    path.mkdir(parents=True)
    folder = StudyFolder(path)
    spec = _spec(arms, seeds, judges, samples)
    write_text(folder.spec, spec_to_json(spec))
    steps = {name: 0 if name == "sft" else STEPS for name in arms}
    run_specs = {name: run_pb2.RunSpec(ppo=run_pb2.PpoSpec(steps=steps[name])) for name in arms}
    write_json(folder.arms, {name: json_format.MessageToDict(one) for name, one in run_specs.items()})
    for name in arms:
        for seed in seeds:
            state, error = ("FAILED", "out of memory") if (name, seed) in failed else ("SUCCEEDED", "")
            run = f"made-{name}-{seed}-20261130-120000-ab12"
            folder.note_run(StudyRun(name, seed, run, 0, run, str(path / run), state, error, 600.0 + 60 * seed))
    points = points_of(spec, folder.read_runs(), steps)
    evaluated = fill_defaults(asked(spec))
    evaluated.models.extend(
        evaluation_pb2.EvaluatedModel(name=name, model=f"org/{name}")
        for name in (START, *(one.model for one in points))
    )
    evaluation = folder.evaluation
    evaluation.path.mkdir()
    keys = [(f"{axis}-{place}", axis) for axis in AXES for place in range(prompts)]
    turns = {key: (ChatMessage("user", f"Question {key}?"),) for key, _ in keys}
    evaluation.begin(evaluated, [EvaluatedPrompt(key, turns[key], axis) for key, axis in keys])
    for point in points:
        by = (trained or {}).get(point.arm)
        about = [{"judge": f"org/{by}-model", "constitution_digest": ""}] if by else []
        evaluation.note_served("models", point.model, {"model": f"org/{point.model}", "trained": about})
    for name in judges:
        evaluation.note_served("judges", name, {"model": f"org/{name}-model", "method": "contrast"})
    lengths = {START: 60.0, **{point.model: 60.0 + arms[point.arm].longer for point in points}}
    answers = [
        Answer(model, key, 0, 1, axis, f"{model} {key}", max(1, round(length * rng.uniform(0.4, 1.6))))
        for model, length in lengths.items()
        for key, axis in keys
    ]
    write_text(evaluation.answers, "".join(answer_line(one) + "\n" for one in answers))
    apart = {(name, seed): (rng.gauss(0, scatter), rng.gauss(0, scatter)) for name in arms for seed in seeds}
    hard = {key: rng.gauss(0, 60) for key, _ in keys}
    lines = []
    for place, judge in enumerate(judges):
        for point in points:
            for key, axis in keys:
                rating = _rating(arms, point, axis) / (1 + place)
                rating += apart[point.arm, point.seed][AXES.index(axis)] + hard[key] + rng.gauss(0, 60)
                p = float(expit(rating / ELO))
                judgement = judge_pb2.Judgement(outcome=outcome_of(p), probability_a=p)
                lines.append(compared_line(Compared(judge, point.model, START, key, 0, axis, judgement)))
    write_text(evaluation.judgements, "".join(line + "\n" for line in lines))
    return folder


def read_spec(folder: StudyFolder) -> StudySpec:
    """Of a study that was begun."""
    spec = folder.read_spec()
    assert spec is not None
    return spec


def note_run_files(folder: StudyFolder, arm: str, seed: int, *, kl: float, labels: int) -> None:
    """What the folder of a run says of it, as far as a study asks."""
    path = Path(folder.read_runs()[arm, seed].artifacts)
    path.mkdir()
    write_text(path / "spec.json", json.dumps({"name": f"made-{arm}-{seed}"}))
    event = {"sequence": "1", "phase": "PHASE_PPO", "step": STEPS, "metrics": {"kl_k1": kl}}
    write_text(path / "events.jsonl", json.dumps(event) + "\n")
    fit = PreferenceFit(labels - 4, 4, {}, (), (), Calibration(4, 0.75, 0.1, 0.9, 0.2, 0.1, ()), 0.0)
    write_result(path, "preference_fit", fit)


def _spec(arms: Mapping[str, MadeArm], seeds: Sequence[int], judges: Sequence[str], samples: int) -> StudySpec:
    return StudySpec(
        name="made",
        seed=3,
        run="run.yaml",
        seeds=seeds,
        arms=[
            study_pb2.StudyArm(name=name, labels=one.labels, labels_by_dimension=one.by_dimension, after=one.after)
            for name, one in arms.items()
        ],
        evaluation=study_pb2.StudyEvaluation(
            prompts=[evaluation_pb2.EvaluatedPrompts(source=f"{axis}.jsonl", dimension=axis) for axis in AXES],
            judges=[evaluation_pb2.EvaluationJudge(name=name, model=f"org/{name}-model") for name in judges],
            answers_per_prompt=1,
            every_steps=EVERY,
            axes=AXES,
            bootstrap_samples=samples,
        ),
    )


def _rating(arms: Mapping[str, MadeArm], point: Point, axis: str) -> float:
    """The true rating of an arm's policies on the way from where they begin to its end."""
    way = 1.0 if point.step is None else point.step / STEPS
    arm, begin = arms[point.arm], arms.get(arms[point.arm].after, MadeArm(0, 0))
    if axis == AXES[0]:
        return begin.across + (arm.across - begin.across) * way
    return begin.up + (arm.up - begin.up) * way + arm.bend * 4 * way * (1 - way)

"""The measurement of a study as an evaluation: every policy against what all arms started from."""

from collections.abc import Mapping, Sequence

from charter.evaluation.compare.checkpoints import exported
from charter.evaluation.compare.spec import EvaluateSpec, fill_defaults
from charter.study.folder import StudyFolder, StudyRun
from charter.study.points import Point
from charter.study.spec import START, StudySpec, asked
from charter.v1 import evaluation_pb2, run_pb2

# Engines that serve a policy from its folder.
_SERVE_FOLDERS = ("auto", "transformers", "vllm")


def evaluation_of(
    spec: StudySpec, base: run_pb2.RunSpec, points: Sequence[Point], runs: Mapping[tuple[str, int], StudyRun]
) -> EvaluateSpec:
    """The filled spec of an evaluation of these policies; ``base`` is the run spec that the arms share."""
    found = asked(spec)
    found.failures.CopyFrom(base.failures)
    engine = base.policy.engine if base.policy.engine in _SERVE_FOLDERS else ""
    found.models.append(start_of(base))
    found.models.extend(model_of(point, runs[point.arm, point.seed]) for point in points)
    for model in found.models:
        model.engine = engine
    return fill_defaults(found)


def start_of(base: run_pb2.RunSpec) -> evaluation_pb2.EvaluatedModel:
    """What all arms start from as one of the models of an evaluation."""
    policy = base.policy
    return evaluation_pb2.EvaluatedModel(
        name=START,
        model=policy.model,
        engine=policy.engine,
        chat_template=policy.chat_template,
        eos_token=policy.eos_token,
    )


def model_of(point: Point, run: StudyRun) -> evaluation_pb2.EvaluatedModel:
    """A policy as one of the models of an evaluation."""
    return evaluation_pb2.EvaluatedModel(name=point.model, run=run.artifacts, step=point.step)


def present(folder: StudyFolder, points: Sequence[Point], runs: Mapping[tuple[str, int], StudyRun]) -> list[Point]:
    """Those whose policies are there: a run that ended before its last step lacks some of its curve."""
    return [
        point
        for point in points
        if point.step is None or exported(folder.evaluation.path, model_of(point, runs[point.arm, point.seed])).is_dir()
    ]

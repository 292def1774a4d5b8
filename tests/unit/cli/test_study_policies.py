"""The policies of a curve are taken out of a run's checkpoints, which then go."""

from pathlib import Path

from charter.cli.study.policies import take_out
from charter.evaluation.compare.checkpoints import exported
from charter.runs.artifacts import checkpoints_of
from charter.study.evaluation import evaluation_of, model_of, present
from charter.study.folder import StudyFolder, StudyRun
from charter.study.points import Point
from charter.study.spec import StudySpec
from charter.v1 import run_pb2
from transformers import AutoModelForCausalLM

from tests.support.learned_run import learned_run


def test_policies_are_taken_out_once_and_the_newest_checkpoints_stay(tmp_path: Path, tiny_model: Path) -> None:
    learned_run(tmp_path / "run", tiny_model)
    folder = StudyFolder(tmp_path / "study")
    run = StudyRun("rlaif", 3, "request", run="run", artifacts=str(tmp_path / "run"), state="SUCCEEDED")
    # A run that ended early never came to its third step.
    points = [Point("rlaif", 3, step, f"rlaif-3-step-{step}") for step in (1, 3)] + [Point("rlaif", 3, None, "rlaif-3")]
    take_out(folder, points, run, keep=1)
    place = exported(folder.evaluation.path, model_of(points[0], run))
    AutoModelForCausalLM.from_pretrained(place)
    assert list(checkpoints_of(tmp_path / "run")) == [2]
    written = (place / "model.safetensors").stat().st_mtime_ns
    take_out(folder, points, run, keep=1)
    assert (place / "model.safetensors").stat().st_mtime_ns == written

    there = present(folder, points, {run.key: run})
    assert [point.step for point in there] == [1, None]
    base = run_pb2.RunSpec(policy=run_pb2.PolicySpec(model="org/start", engine="fake", chat_template="chatml"))
    spec = evaluation_of(StudySpec(name="small", seed=4), base, there, {run.key: run})
    assert [(one.name, one.step, one.engine) for one in spec.models] == [
        ("start", 0, ""),
        ("rlaif-3-step-1", 1, ""),
        ("rlaif-3", 0, ""),
    ]
    assert (spec.start, spec.pairs, spec.seed, spec.models[0].chat_template) == ("start", "start", 4, "chatml")

"""The policies on the way of a run: taken out of its checkpoints, which are many times as large."""

from collections.abc import Sequence
from pathlib import Path

from charter.evaluation.compare.checkpoints import exported
from charter.runs.artifacts import checkpoints_of, remove_checkpoint
from charter.study.evaluation import model_of
from charter.study.folder import StudyFolder, StudyRun
from charter.study.points import Point


def take_out(folder: StudyFolder, points: Sequence[Point], run: StudyRun, keep: int) -> None:
    """Write the policies of a run's curve into the folder of the evaluation, and delete what they were in.

    The newest ``keep`` checkpoints stay. Raises ``RunError`` for one that is damaged, ``OSError``.
    """
    steps = {point.step: model_of(point, run) for point in points if point.step is not None}
    there = checkpoints_of(Path(run.artifacts))
    for step, model in steps.items():
        place = exported(folder.evaluation.path, model)
        if step in there and not place.is_dir():
            # Here, not at the top: of a study without curves nothing needs torch.
            from charter.worker.training.export import export_policy

            export_policy(Path(run.artifacts), step, place)
    for step in sorted(there)[:-keep]:
        if step in steps:
            remove_checkpoint(there[step])

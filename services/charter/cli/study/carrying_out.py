"""A study from its pairs to its measurement, whatever of it is not done yet."""

from rich.console import Console

from charter.cli.evaluation.evaluate import ask_stored, write_figures
from charter.cli.evaluation.progress import EvaluationProgress
from charter.cli.evaluation.serving import LocalServers
from charter.cli.services import gpu_sharing, service_addresses
from charter.cli.study.progress import RunsProgress
from charter.cli.study.running import StudyRuns
from charter.cli.study.times import Times
from charter.state_files import alone_in
from charter.study.evaluation import evaluation_of, present
from charter.study.folder import StudyFolder
from charter.study.points import points_of, steps_of
from charter.study.runs import all_runs, stores
from charter.study.spec import CheckedStudy
from charter.worker.study.labelling import label_pairs


def carry_out(study: CheckedStudy, folder: StudyFolder, say: Console) -> None:
    """Label the pairs, run every arm with every seed, measure the policies.

    A run that fails is said, and the rest goes on without it. Raises ``RunError`` when nothing can, ``DataError``,
    ``ServiceError``, ``StateFileError``, and ``KeyboardInterrupt`` once what was under way has stopped.
    """
    servers = LocalServers(study.spec.name, folder.path, say)
    servers.stop_left_over()
    with EvaluationProgress(say) as labelling:
        label_pairs(study, folder, servers, stores(study, service_addresses(gpu_sharing())), labelling.show)
    folder.tick()
    times = Times(study, folder)
    with RunsProgress(say, study.spec, len(all_runs(study.spec))) as progress:
        progress.done(folder.read_runs().values())
        StudyRuns(study, folder, progress, times.why_not).carry_out()
    runs = folder.read_runs()
    points = present(folder, points_of(study.spec, runs, steps_of(study.arms)), runs)
    if points:
        evaluation = evaluation_of(study.spec, study.base, points, runs)
        with alone_in(folder.evaluation.path):
            ask_stored(evaluation, folder.evaluation, say)
            write_figures(folder.evaluation, evaluation)

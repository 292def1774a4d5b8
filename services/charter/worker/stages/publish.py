"""Completes the artifacts: the comparisons as Parquet, the policy and its model card, the report."""

import os
import shutil

from charter.evaluation.card.files import write_card
from charter.evaluation.report.report import write_report
from charter.runs.artifacts import now
from charter.runs.folder import read_run_folder
from charter.spec.facts import needs_reinforcement
from charter.storage.comparison_files import write_comparisons
from charter.v1 import run_pb2
from charter.worker.context import Run


class Publishing:
    """Writes what is left, and says that the run has finished."""

    phase = run_pb2.PHASE_REPORTING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Always."""
        return True

    def done(self, run: Run) -> bool:
        """Never: it is soon done again, and its files tell of all that was done before."""
        return False

    def work(self, run: Run) -> None:
        """Raises ``ServiceError`` when the preference service does not give the comparisons."""
        aligned = needs_reinforcement(run.spec)
        if aligned:
            write_comparisons(run.artifacts.comparisons, run.services.preference.comparisons(run.id))
        else:
            _take_over(run)
        run.artifacts.record["finished"] = now()
        run.artifacts.save_record()
        write_card(read_run_folder(run.artifacts.folder))
        run.reporter.report(1, 2, text=f"{'comparisons and ' * aligned}model card written")
        write_report(run.artifacts.folder)
        run.reporter.report(2, 2, text="finished")


def _take_over(run: Run) -> None:
    """Without RL the policy is what was learned last: the same files under the name that every run has it by."""
    if not run.artifacts.policy.exists():
        temporary = run.artifacts.policy.with_name(".policy.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(run.start.model, temporary, copy_function=_link_or_copy)
        temporary.rename(run.artifacts.policy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # A volume without hard links.
        shutil.copy2(source, target)

"""Completes the artifacts: the comparisons as Parquet, the policy's model card, the report."""

from charter.atomic_files import write_text
from charter.evaluation.report.model_card import model_card
from charter.evaluation.report.report import write_report
from charter.runs.artifacts import now
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
        write_comparisons(run.artifacts.comparisons, run.services.preference.comparisons(run.id))
        write_text(run.artifacts.policy / "README.md", model_card(run.artifacts.folder))
        run.reporter.report(1, 2, text="comparisons and model card written")
        run.artifacts.record["finished"] = now()
        run.artifacts.save_record()
        write_report(run.artifacts.folder)
        run.reporter.report(2, 2, text="finished")

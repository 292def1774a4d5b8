"""Completes the artifacts: the comparisons as Parquet, the policy's model card, the report."""

from charter.atomic_files import write_text
from charter.evaluation.report.model_card import model_card
from charter.evaluation.report.report import write_report
from charter.runs.artifacts import now
from charter.storage.comparison_files import write_comparisons
from charter.v1 import run_pb2
from charter.worker.context import Run


def publish(run: Run) -> None:
    """Write what is left, and say that the run has finished."""
    with run.reporter.in_phase(run_pb2.PHASE_REPORTING):
        write_comparisons(run.artifacts.comparisons, run.services.preference.comparisons(run.id))
        write_text(run.artifacts.policy / "README.md", model_card(run.artifacts.folder))
        run.reporter.report(1, 2, text="comparisons and model card written")
    run.artifacts.record["finished"] = now()
    run.artifacts.save_record()
    write_report(run.artifacts.folder)
    run.reporter.report(2, 2, text="finished")

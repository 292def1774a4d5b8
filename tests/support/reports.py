"""What a run reports, for the places that numbers go to."""

from pathlib import Path

from charter.runs.artifacts import Artifacts
from charter.v1 import run_pb2
from charter.worker.reporter import Reporter
from charter.worker.sinks.base import Ending
from charter.worker.sinks.opening import open_sinks


def report_a_run(folder: Path, sink: "run_pb2.Sink.ValueType", ending: Ending = Ending.FINISHED) -> None:
    """Two batches of a fit, and two PPO steps with an announcement between them, of the run "r-1"."""
    spec = run_pb2.RunSpec(name="r", sinks=[sink, sink], policy=run_pb2.PolicySpec(model="org/model"))
    reporter = Reporter(Artifacts(folder, "r-1"), "r-1", 1, "")
    reporter.sinks = open_sinks("r-1", spec, folder)
    assert len(reporter.sinks) == 1
    with reporter.in_phase(run_pb2.PHASE_FITTING_PREFERENCE_MODEL):
        reporter.report(1, 2, numbers={"train_loss": 0.7})
        reporter.report(2, 2, numbers={"train_loss": 0.5})
    with reporter.in_phase(run_pb2.PHASE_PPO):
        for step in (1, 2):
            reporter.report(step - 1, 2, text="sampling")
            reporter.report(step, 2, step=step, numbers={"reward_mean": 0.25 * step, "score_mean.helpful": -1.5})
    reporter.close(ending)

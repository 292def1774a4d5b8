"""Prometheus metrics of the trainer. The numbers of a run are on its worker's own page; here is what outlives it."""

from collections.abc import Mapping

from prometheus_client import Gauge

from charter.trainer.runs import State
from charter.v1 import run_pb2

RUNS = Gauge("charter_runs", "Runs by state.", ["state"])

# The label is the run's id; both go away when the run ends, because their last values would look alive.
STEP = Gauge("charter_run_step", "Newest PPO step of a run under way.", ["run"])
LAST_HEARD = Gauge(
    "charter_run_last_heard_timestamp_seconds",
    "Unix time at which the worker of a run under way was last heard, or started.",
    ["run"],
)
WIN_RATE = Gauge(
    "charter_run_win_rate",
    "Share of held-out prompts on which the judge prefers the aligned policy, of the newest evaluated runs.",
    ["run"],
)
# Runs whose win rate is kept since the trainer started: enough to compare, and bounded.
MOST_WIN_RATES = 20
_evaluated: list[str] = []


def show_runs(counts: Mapping[State, int]) -> None:
    """Set the number of runs in each state."""
    for state, count in counts.items():
        RUNS.labels(state.lower()).set(count)


def show_worker(run_id: str) -> None:
    """A worker is watched from now on."""
    LAST_HEARD.labels(run_id).set_to_current_time()


def show_event(run_id: str, event: run_pb2.RunEvent) -> None:
    """Set the gauges of a run under way that an event speaks of."""
    LAST_HEARD.labels(run_id).set_to_current_time()
    if event.phase == run_pb2.PHASE_PPO and event.HasField("step"):
        STEP.labels(run_id).set(event.step)
    if "win_rate" in event.metrics:
        WIN_RATE.labels(run_id).set(event.metrics["win_rate"])
        if run_id not in _evaluated:
            _evaluated.append(run_id)
        while len(_evaluated) > MOST_WIN_RATES:
            WIN_RATE.remove_by_labels({"run": _evaluated.pop(0)})


def remove_run(run_id: str) -> None:
    """Stop exporting a run that has ended."""
    for gauge in (STEP, LAST_HEARD):
        gauge.remove_by_labels({"run": run_id})

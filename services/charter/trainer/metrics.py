"""Prometheus metrics of the trainer."""

from collections.abc import Mapping

from prometheus_client import Gauge

from charter.trainer.runs import State

RUNS = Gauge("charter_runs", "Runs by state.", ["state"])

# Metric of a run's newest PPO step -> gauge. The label is the run's id; it goes away when the run ends.
_OF_RUN = {
    "reward_mean": Gauge("charter_run_reward_mean", "Mean reward of the newest PPO step.", ["run"]),
    "score_mean": Gauge("charter_run_score_mean", "Mean preference score of the newest PPO step.", ["run"]),
    "kl_k1": Gauge("charter_run_kl_nats", "Mean KL to the reference per answer (k1), newest PPO step.", ["run"]),
    "tokens_per_second": Gauge("charter_run_tokens_per_second", "Sampled tokens per second, newest PPO step.", ["run"]),
}
STEP = Gauge("charter_run_step", "Newest PPO step.", ["run"])


def show_runs(counts: Mapping[State, int]) -> None:
    """Set the number of runs in each state."""
    for state, count in counts.items():
        RUNS.labels(state.lower()).set(count)


def show_step(run_id: str, step: int, values: Mapping[str, float]) -> None:
    """Set the gauges of a run to its newest PPO step."""
    STEP.labels(run_id).set(step)
    for name, gauge in _OF_RUN.items():
        if name in values:
            gauge.labels(run_id).set(values[name])


def remove_run(run_id: str) -> None:
    """Stop exporting a run that has ended; its last values would look alive."""
    for gauge in (STEP, *_OF_RUN.values()):
        gauge.remove_by_labels({"run": run_id})

"""Readings of the services' own metrics pages, for `charter top`: what is there, and what changed since the last."""

import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from charter.cli.services import SERVICES, endpoint, trainer_alone, worker_metrics_address

TIMEOUT_SECONDS = 3.0

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Reading:
    """The pages of one moment; a process that did not answer has none."""

    # By time.monotonic().
    time: float
    pages: dict[str, Samples]

    def sum(self, page: str, name: str, **labels: str) -> float | None:
        """Sum of the series with these labels; None when there is none."""
        found = [
            value
            for have, value in self.pages.get(page, {}).get(name, ())
            if all(have.get(key) == wanted for key, wanted in labels.items())
        ]
        return sum(found) if found else None

    def label(self, page: str, name: str, label: str) -> str:
        """Label of the first series that is not 0; empty when there is none."""
        return next((have[label] for have, value in self.pages.get(page, {}).get(name, ()) if value), "")


def read() -> Reading:
    """Ask every service and the worker. What cannot be reached is left out."""
    addresses = {name: endpoint(name).metrics for name in SERVICES} | {"worker": worker_metrics_address()}
    pages = {}
    for name, address in addresses.items():
        if address and (text := _page(address)) is not None:
            pages[name] = _samples(text)
    return Reading(time.monotonic(), pages)


def _page(address: str) -> str | None:
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_SECONDS) as response:
            text: str = response.read().decode()
            return text
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def _samples(text: str) -> Samples:
    # Here, not at the top: who asks for help waits for no parser.
    from prometheus_client.parser import text_string_to_metric_families

    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


# What is counted -> page and counter; shown per second.
RATES = {
    "sampled_tokens": ("policy", "charter_policy_generated_tokens_total"),
    "samples": ("policy", "charter_policy_samples_total"),
    "judgements": ("judge", "charter_judge_judgements_total"),
    "comparisons": ("preference", "charter_comparisons_added_total"),
    "scores": ("preference", "charter_preference_scores_total"),
    "episodes": ("worker", "charter_worker_episodes_total"),
}
QUEUES = {
    "policy": "charter_policy_waiting_requests",
    "judge": "charter_judge_waiting_items",
    "preference": "charter_preference_waiting_answers",
}
RUN = {
    "reward": "charter_ppo_reward_mean",
    "kl": "charter_ppo_kl_k1",
    "entropy": "charter_ppo_entropy",
    "answer_tokens": "charter_ppo_response_tokens_mean",
    "logprob_mismatch": "charter_ppo_probe_mismatch_mean",
    "step_seconds": "charter_ppo_step_seconds",
    "weight_version": "charter_ppo_weight_version",
    "phase_done": "charter_worker_phase_done_ratio",
    "held_out_accuracy": "charter_preference_fit_held_out_accuracy",
}
# Of the stage that learns before RL, while it is under way.
LEARNING = {
    "step": "charter_learning_step",
    "loss": "charter_learning_train_loss",
    "held_out_loss": "charter_learning_held_out_loss",
    "tokens_per_second": "charter_learning_tokens_per_second",
    "learning_rate": "charter_learning_learning_rate",
    "step_seconds": "charter_learning_step_seconds",
}


def summary(before: Reading, now: Reading) -> dict[str, Any]:
    """What `charter top` shows. A number that nothing exports is None, never 0."""
    # Of services that were not started because nothing asks them, there is nothing to say.
    alone = trainer_alone()
    shown = [name for name in SERVICES if name == "trainer" or name in now.pages or not alone]
    return {
        "services": {name: _service(name, before, now) for name in shown},
        "per_second": {name: _rate(before, now, *where) for name, where in RATES.items()},
        "run": _run(now),
    }


def _service(name: str, before: Reading, now: Reading) -> dict[str, Any]:
    return {
        "address": endpoint(name).metrics,
        "reached": name in now.pages,
        "serving": now.sum(name, "charter_serving", service=name) == 1.0,
        "version": now.label(name, "charter_build_info", "version"),
        "weight_version": now.sum(name, "charter_weight_version"),
        "waiting": now.sum(name, QUEUES[name]) if name in QUEUES else None,
        "calls_per_second": _rate(before, now, name, "grpc_server_handled_total"),
        "failed_per_second": _rate(before, now, name, "charter_calls_failed_total"),
        "memory_bytes": now.sum(name, "process_resident_memory_bytes"),
    }


def _rate(before: Reading, now: Reading, page: str, name: str, **labels: str) -> float | None:
    earlier, later = before.sum(page, name, **labels), now.sum(page, name, **labels)
    if later is None or earlier is None or later < earlier:
        # Not there, not yet there, or counting from 0 again.
        return None
    return (later - earlier) / (now.time - before.time)


def _run(now: Reading) -> dict[str, Any] | None:
    if "worker" not in now.pages:
        return None
    run_id = now.label("worker", "charter_worker_run_info", "run")
    phase = now.label("worker", "charter_worker_phase", "phase")
    learning = {name: now.sum("worker", metric, stage=phase) for name, metric in LEARNING.items()}
    return {
        "id": run_id,
        "model": now.label("worker", "charter_worker_run_info", "model"),
        "phase": phase,
        # None in every other phase.
        "learning": learning if learning["step"] is not None else None,
        # The trainer's: a worker that resumed a run counts its own steps from 0.
        "step": now.sum("trainer", "charter_run_step", run=run_id),
        **{name: now.sum("worker", metric) for name, metric in RUN.items()},
    }

"""The numbers of a run: names of RunEvent metrics, and what Prometheus scrapes from the worker.

Each metric of ``PPO``, whatever the algorithm, is the gauge ``charter_ppo_<name>``, each of ``FIT`` the gauge
``charter_preference_fit_<name>``, each of ``LEARNING`` the gauge ``charter_learning_<name>`` of its stage, each of
``REVISION`` the gauge ``charter_revision_<name>``. ``docs/ppo.md`` says more about each. What is about one run carries
the label ``run``; a gauge is not exported before its first value.
"""

import importlib.metadata
import logging
import os
from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from charter.environment import worker_metrics_port
from charter.outcomes import failure_name
from charter.rpc.metrics import BUILD
from charter.storage.comparisons import enum_name
from charter.v1 import run_pb2, types_pb2

logger = logging.getLogger("charter.worker")

# The address that the metrics page listens on (0.0.0.0 in a cluster).
HOST_VARIABLE = "CHARTER_WORKER_METRICS_HOST"

PPO = {
    "score_mean": "Mean score of the step's answers, before any penalty; absent with online DPO.",
    "score_std": "Standard deviation of these scores; absent with online DPO.",
    "judge_certainty": "Mean probability that the judge gives the better answer of a pair, 0.5 where it cannot tell "
    "(online DPO).",
    "left_out_share": "Share of the step's answers, or pairs with online DPO, that had no score and were left out.",
    "reward_mean": "Mean reward of an answer: score, less the missing-EOS penalty, less the KL penalty.",
    "reward_p10": "Reward that a tenth of the answers stay below.",
    "reward_p50": "Median reward of an answer.",
    "reward_p90": "Reward that a tenth of the answers exceed.",
    "length_reward_correlation": "Pearson correlation of an answer's tokens and reward; absent if one does not vary.",
    "kl_k1": "KL to the reference per answer in nats, estimator k1.",
    "kl_k3": "KL to the reference per answer in nats, estimator k3.",
    "kl_coefficient": "Coefficient of the KL penalty.",
    "kl_target": "KL per answer in nats that the coefficient is adapted to; absent when it is fixed.",
    "response_tokens_mean": "Mean tokens of an answer, EOS included.",
    "eos_share": "Share of answers that ended with EOS.",
    "policy_loss": "Clipped surrogate loss, mean over tokens and optimiser steps.",
    "dpo_accuracy": "Share of the judged pairs in which the policy leans as the judge does (online DPO).",
    "dpo_margin": "Mean lead of the answer that the judge prefers, in nats times dpo_beta (online DPO).",
    "value_loss": "Clipped value loss, mean over tokens and optimiser steps.",
    "clip_fraction": "Share of tokens whose ratio was clipped.",
    "value_clip_fraction": "Share of tokens whose value was clipped.",
    "ratio_mean": "Mean probability ratio of new and old policy.",
    "entropy": "Mean entropy in nats of the next-token distribution before the update.",
    "explained_variance": "Share of the returns' variance that the critic explains; absent when they do not vary.",
    "policy_gradient_norm": "Norm of the policy's gradient before clipping.",
    "importance_ratio_mean": "Mean probability ratio of trainer and sampler, before truncation.",
    "logprob_mismatch_mean": "Mean absolute difference in nats between trainer's and sampler's log-probs; where tokens "
    "are of older weights, how far the policy has moved since is in it.",
    "logprob_mismatch_max": "Largest such difference.",
    "token_age_mean": "Mean over tokens of the weight versions between the one that wrote it and the one that learns.",
    "held_out_judge": "P(the judge prefers the policy's answer to the starting policy's), watched held-out prompts.",
    "held_out_score": "Mean score on the watched held-out prompts.",
    "held_out_kl": "KL to the reference per answer in nats, estimator k3, on the watched held-out prompts.",
    "probe_mismatch_mean": "Mean absolute difference in nats of log-probs, trainer against replicas, on the probe.",
    "probe_mismatch_max": "Largest such difference.",
    "tokens_per_second": "Answer tokens per second of the whole step.",
    "episodes_per_second": "Answers per second of the whole step.",
    "sampling_seconds": "Seconds to sample the step's answers, in part or all during the step before.",
    "waiting_seconds": "Seconds in which the worker waited for answers: for its own, and for the next step's before it "
    "sent weights.",
    "scoring_seconds": "Seconds to score the answers.",
    "update_seconds": "Seconds for log-probs, advantages and optimiser steps.",
    "weight_sync_seconds": "Seconds until the replicas, without late ones, served the new weights and were probed.",
    "watching_seconds": "Seconds to have the judge compare the policy with the starting one, where that is due.",
    "step_seconds": "Seconds of the whole step, without the checkpoint.",
    "worker_idle_share": "Share of the step in which the trainer's device computed nothing: all but the update.",
    "policy_idle_share": "Share of the step in which no answer of the run was being sampled on any replica.",
    "weight_version": "Version that the policy serves after the step.",
    "preference_version": "Version of the preference model that scored the step's answers; absent where none did.",
}
# On the scale of the preference model, which a refresh changes: their gauges carry its version, and those of an earlier
# version are not shown any longer.
SCALED = frozenset(
    ("score_mean", "score_std", "reward_mean", "reward_p10", "reward_p50", "reward_p90", "held_out_score")
)
FIT = {
    "train_loss": "Cross-entropy on the last batch, in nats.",
    "held_out_loss": "Cross-entropy on the held-out comparisons, in nats.",
    "held_out_accuracy": "Agreement with the judge on the held-out comparisons.",
    "held_out_calibration_error": "Expected calibration error against the judge on the held-out comparisons.",
}
# Of the stages that learn before RL, or instead of it.
LEARNING = {
    "train_loss": "Cross-entropy of the step's learned tokens, in nats.",
    "held_out_loss": "Cross-entropy of what is held out, in nats: of each source by its share of what is learned.",
    "learning_rate": "Learning rate of the step.",
    "gradient_norm": "Norm of the gradient before clipping.",
    "tokens_per_second": "Tokens per second that are learned, of the step.",
    "step_seconds": "Seconds of the step, without measurement and checkpoint.",
}
# Held-out loss of one source of such a stage, by its name.
BY_SOURCE = "held_out_loss."
REVISION = {
    "gate_probability": "Mean P(the judge prefers the revision) on the gate's held-out prompts.",
    "gate_low": "Lower end of its 95 % interval: above 0.5 revising helps.",
    "gate_high": "Upper end of its 95 % interval.",
    "accepted_share": "Share of the answers that have a revision to learn from.",
}
# Rows of all rounds so far with a verdict of the filters, or a kind of failure.
BY_VERDICT = "rows."
# Mean score of a step's answers whose prompt is of a dimension of the constitution, or of none (``other``).
BY_DIMENSION = "score_mean."
# Items of a stage that were left out for a kind of failure, in a step or in the stage so far.
BY_KIND = "left_out."

_PPO_GAUGES = {
    name: Gauge(f"charter_ppo_{name}", text, ["run", "preference_version"] if name in SCALED else ["run"])
    for name, text in PPO.items()
}
_FIT_GAUGES = {name: Gauge(f"charter_preference_fit_{name}", text, ["run"]) for name, text in FIT.items()}
_LEARNING_GAUGES = {name: Gauge(f"charter_learning_{name}", text, ["run", "stage"]) for name, text in LEARNING.items()}
_LEARNING_STEP = Gauge("charter_learning_step", "Newest step of a stage that learns before RL.", ["run", "stage"])
_SOURCE_LOSS = Gauge(
    "charter_learning_source_held_out_loss",
    "Cross-entropy of what is held out of one source, in nats.",
    ["run", "stage", "source"],
)
_REVISION_GAUGES = {name: Gauge(f"charter_revision_{name}", text, ["run"]) for name, text in REVISION.items()}
_VERDICTS = Gauge(
    "charter_revision_rows", "Revisions of all rounds so far, by verdict of the filters.", ["run", "verdict"]
)
_DIMENSION = Gauge(
    "charter_ppo_dimension_score_mean",
    "Mean preference score of the step's answers to prompts of a dimension of the constitution.",
    ["run", "dimension", "preference_version"],
)
# By run, the preference model whose scale is shown; empty for other rewards.
_scales: dict[str, str] = {}
_PHASE = Gauge("charter_worker_phase", "1 for the phase that the worker is in, else 0.", ["run", "phase"])
PHASE_SECONDS = Counter(
    "charter_worker_phase_seconds_total",
    "Seconds in phases that have ended, those inside them included.",
    ["run", "phase"],
)
_RUN = Gauge(
    "charter_worker_run_info", "1, with the run's id and name, and its policy's model.", ["run", "name", "model"]
)
_DONE = Gauge("charter_worker_phase_done_ratio", "Share of the present phase that is done.", ["run"])
STEPS = Counter("charter_worker_steps_total", "PPO steps done by this process.", ["run"])
EPISODES = Counter("charter_worker_episodes_total", "Answers that PPO has learned from.", ["run"])
TOKENS = Counter("charter_worker_tokens_total", "Answer tokens that PPO has learned from.", ["run"])
PAIRS = Counter("charter_worker_pairs_total", "Judged pairs by outcome.", ["run", "outcome"])
LEFT_OUT = Counter(
    "charter_worker_left_out_total",
    "Items that a stage could not use and left out, by kind of failure.",
    ["run", "stage", "kind"],
)
REPLICAS = Gauge(
    "charter_worker_replicas", "Replicas that the worker knows, by whether they take calls.", ["service", "ready"]
)
REASSIGNED = Counter(
    "charter_worker_reassigned_total",
    "Prompts or pairs given to another replica, by why (failed, overloaded, slow).",
    ["service", "reason"],
)
TOKEN_AGE = Histogram(
    "charter_worker_token_age_versions",
    "Weight versions between the one that wrote tokens and the one that learned from them; counted once for each "
    "version in an answer.",
    buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16),
)
CHECKPOINT_SECONDS = Gauge("charter_worker_checkpoint_seconds", "Seconds that the last checkpoint took.", ["run"])
CHECKPOINT_TIME = Gauge(
    "charter_worker_checkpoint_timestamp_seconds", "Unix time of the newest complete checkpoint.", ["run"]
)


def serve(run_id: str, spec: run_pb2.RunSpec) -> None:
    """Serve the metrics page, unless the port is 0. A taken port is logged: the run is worth more than its page.

    Raises ``EnvironmentVariableError``.
    """
    for phase in run_pb2.Phase.values()[1:]:
        _PHASE.labels(run_id, phase_name(phase)).set(0)
        PHASE_SECONDS.labels(run_id, phase_name(phase))
    for outcome in types_pb2.Outcome.values()[1:]:
        PAIRS.labels(run_id, enum_name("outcome", outcome).lower())
    for counter in (STEPS, EPISODES, TOKENS):
        counter.labels(run_id)
    for kind in types_pb2.FailureKind.values()[1:]:
        LEFT_OUT.labels(run_id, "training", failure_name(kind))
    for service in ("policy", "judge"):
        for reason in ("failed", "overloaded", "slow"):
            REASSIGNED.labels(service, reason)
    _RUN.labels(run_id, spec.name, spec.policy.model).set(1)
    BUILD.labels(importlib.metadata.version("charter")).set(1)
    port = worker_metrics_port()
    if port == 0:
        return
    host = os.environ.get(HOST_VARIABLE, "127.0.0.1")
    try:
        start_http_server(port, addr=host)
    except OSError as error:
        logger.warning("no metrics page", extra={"address": f"{host}:{port}", "reason": error.strerror})


def show(run_id: str, event: run_pb2.RunEvent) -> None:
    """Set the gauges that an event speaks of."""
    for phase in run_pb2.Phase.values()[1:]:
        _PHASE.labels(run_id, phase_name(phase)).set(phase == event.phase)
    if event.total:
        _DONE.labels(run_id).set(event.done / event.total)
    gauges: Mapping[str, Gauge] = {}
    if event.phase == run_pb2.PHASE_PPO:
        gauges = _PPO_GAUGES
    elif event.phase == run_pb2.PHASE_FITTING_PREFERENCE_MODEL:
        gauges = _FIT_GAUGES
    else:
        gauges = _REVISION_GAUGES
        _show_learning(run_id, event)
    scale = f"{event.metrics['preference_version']:.0f}" if "preference_version" in event.metrics else ""
    if SCALED & set(event.metrics) and (earlier := _scales.get(run_id, scale)) != scale:
        for gauge in (_DIMENSION, *(_PPO_GAUGES[name] for name in SCALED)):
            gauge.remove_by_labels({"run": run_id, "preference_version": earlier})
    for name, value in event.metrics.items():
        if name in gauges and name in SCALED:
            _scales[run_id] = scale
            gauges[name].labels(run_id, scale).set(value)
        elif name in gauges:
            gauges[name].labels(run_id).set(value)
        elif name.startswith(BY_DIMENSION):
            _DIMENSION.labels(run_id, name.removeprefix(BY_DIMENSION), scale).set(value)


def _show_learning(run_id: str, event: run_pb2.RunEvent) -> None:
    """What a stage before RL says of its steps and sources."""
    stage = phase_name(event.phase)
    if event.HasField("step"):
        _LEARNING_STEP.labels(run_id, stage).set(event.step)
    for name, value in event.metrics.items():
        if name in _LEARNING_GAUGES:
            _LEARNING_GAUGES[name].labels(run_id, stage).set(value)
        elif name.startswith(BY_SOURCE):
            _SOURCE_LOSS.labels(run_id, stage, name.removeprefix(BY_SOURCE)).set(value)
        elif name.startswith(BY_VERDICT):
            _VERDICTS.labels(run_id, name.removeprefix(BY_VERDICT)).set(value)


def phase_name(phase: "run_pb2.Phase.ValueType") -> str:
    """``PHASE_PPO`` -> ``PPO``."""
    return run_pb2.Phase.Name(phase).removeprefix("PHASE_")

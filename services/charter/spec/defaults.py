"""Fills in the defaults that the comments of ``run.proto`` state, so that a stored spec says all that it means."""

from collections.abc import Mapping
from typing import Any, Literal

from charter.v1 import run_pb2

# Addresses of the services that `charter up` starts.
POLICY = "127.0.0.1:50051"
POLICY_CONTROL = "127.0.0.1:50061"
JUDGE = "127.0.0.1:50052"
PREFERENCE = "127.0.0.1:50053"
PREFERENCE_CONTROL = "127.0.0.1:50063"
TRAINER = "127.0.0.1:50054"
TRAINER_CONTROL = "127.0.0.1:50064"

MAX_WAIT_SECONDS = 7200

# Unset stays unset for the engines (the run takes what is up), ppo.kl_target (a fixed coefficient), ppo.dual_clip and
# ppo.score_clip (none), ppo.lora_rank and preference_model.lora_rank (every weight is trained),
# comparisons.refresh_every_steps, evaluation.every_steps, evaluation.patience and evaluation.compare (never),
# checkpoints.curve_every_steps (none stay),
# evaluation.prompts (32, or as many as there are), revision.gate_prompts (as those), max_tokens of supervised, dpo and
# kto and pretraining.context_tokens (as the model's context allows), the evaluate_every_steps of these stages (an
# epoch), and the optional files of the judge.
DEFAULTS: dict[str, dict[str, Any]] = {
    "policy": {"logprob_tolerance": 0.1},
    "judge": {"ensemble_size": 1, "labelled_pairs_limit": 100},
    "prompts": {"max_prompt_tokens": 256},
    "sampling": {"temperature": 1.0, "max_new_tokens": 64},
    "comparisons": {"pairs": 64, "held_out_fraction": 0.2, "refresh_pairs": 32},
    "preference_model": {
        "epochs": 1,
        "batch_size": 8,
        "learning_rate": 1e-5,
        "patience": 1,
        "label_smoothing": 0.0,
        "margin": 0.0,
        "members": 1,
        "uncertainty_weight": 1.0,
        "warm_start_epochs": 0,
    },
    "revision": {
        "rounds": 4,
        "accept": "judged_better",
        "critique_tokens": 128,
        "on_no_gain": "skip",
        "helpful_share": 0.5,
    },
    "ppo": {
        "steps": 8,
        "episodes_per_step": 16,
        "epochs": 1,
        "minibatches": 2,
        "learning_rate": 3e-6,
        "critic_learning_rate": 1e-5,
        "kl_coefficient": 0.05,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "ratio_clip": 0.2,
        "value_clip": 0.2,
        "value_coefficient": 0.1,
        "max_gradient_norm": 1.0,
        "missing_eos_penalty": 1.0,
        "importance_ratio_cap": 2.0,
        "critic_warmup_steps": 0,
        "entropy_coefficient": 0.0,
        "dpo_beta": 0.1,
        "precision": "float32",
        "max_staleness": 1,
        "sample_share": 0.05,
    },
    "reward": {"preference_weight": 1.0, "judge_weight": 0.0, "service_weight": 0.0},
    "supervised": {
        "epochs": 1,
        "batch_size": 32,
        "learning_rate": 2e-5,
        "warmup_share": 0.1,
        "held_out_fraction": 0.05,
        "patience": 2,
        "precision": "float32",
        "checkpoint_every_steps": 50,
    },
    "pretraining": {
        "replay_share": 0.05,
        "epochs": 1,
        "batch_tokens": 16384,
        "learning_rate": 1e-4,
        "warmup_share": 0.1,
        "held_out_fraction": 0.05,
        "patience": 2,
        "precision": "float32",
        "checkpoint_every_steps": 50,
    },
    "dpo": {
        "beta": 0.1,
        "epochs": 1,
        "batch_size": 32,
        "learning_rate": 5e-7,
        "warmup_share": 0.1,
        "held_out_fraction": 0.05,
        "patience": 2,
        "precision": "float32",
        "checkpoint_every_steps": 50,
    },
    "kto": {
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "epochs": 1,
        "batch_size": 32,
        "learning_rate": 1e-6,
        "warmup_share": 0.1,
        "held_out_fraction": 0.05,
        "patience": 2,
        "precision": "float32",
        "checkpoint_every_steps": 50,
    },
    "evaluation": {"bootstrap_samples": 2000, "watched_prompts": 16},
    "checkpoints": {"every_steps": 1, "keep": 2},
    "failures": {"max_share": 0.1},
    "services": {
        "policy": [POLICY],
        "policy_control": [POLICY_CONTROL],
        "judge": JUDGE,
        "preference": PREFERENCE,
        "preference_control": PREFERENCE_CONTROL,
        "max_wait_seconds": MAX_WAIT_SECONDS,
    },
}

# Of comparisons, where they are stored ones: no pairs are sampled, and feedback stays unset.
_OF_STORED = {"held_out_fraction": DEFAULTS["comparisons"]["held_out_fraction"]}

# Of stages that a run may be without: their fields are filled in where the spec has the section.
OPTIONAL_SECTIONS: tuple[Literal["pretraining", "supervised", "revision", "dpo", "kto"], ...]
OPTIONAL_SECTIONS = ("pretraining", "supervised", "revision", "dpo", "kto")
# Adapters learn at a rate so many times as high as all weights do.
_LORA_RATE = 10
_LEARNS = (run_pb2.SupervisedSpec, run_pb2.PretrainingSpec, run_pb2.DpoSpec, run_pb2.KtoSpec)

_SAMPLES_PER_PROMPT = {
    run_pb2.ALGORITHM_PPO: 1,
    run_pb2.ALGORITHM_REINFORCE_PLUS_PLUS: 1,
    run_pb2.ALGORITHM_ONLINE_DPO: 2,
    run_pb2.ALGORITHM_GRPO: 4,
    run_pb2.ALGORITHM_RLOO: 4,
}


def fill_defaults(spec: run_pb2.RunSpec) -> run_pb2.RunSpec:
    """Copy of ``spec`` in which every unset field has its default."""
    filled = run_pb2.RunSpec()
    filled.CopyFrom(spec)
    stored = bool(filled.comparisons.stored)
    absent = {optional for optional in OPTIONAL_SECTIONS if not filled.HasField(optional)}
    for section, fields in DEFAULTS.items():
        if section not in absent:
            fill(getattr(filled, section), _OF_STORED if section == "comparisons" and stored else fields)
    if "revision" not in absent:
        fill(filled.revision.learning, DEFAULTS["supervised"])
    if not filled.preference_model.model:
        filled.preference_model.model = filled.policy.model
    if not filled.ppo.algorithm:
        filled.ppo.algorithm = run_pb2.ALGORITHM_PPO
    if not filled.ppo.HasField("samples_per_prompt"):
        filled.ppo.samples_per_prompt = _SAMPLES_PER_PROMPT[filled.ppo.algorithm]
    if not stored:
        _fill_feedback(filled.feedback)
    return filled


def _fill_feedback(feedback: run_pb2.FeedbackSpec) -> None:
    if not (feedback.HasField("ai") or feedback.HasField("human") or feedback.HasField("imported")):
        feedback.ai = 1.0
    mixes: list[Any] = [feedback, *feedback.by_dimension.values()]
    for mix in mixes:
        # Stated, so that the stored spec says all that it means.
        mix.ai, mix.human, mix.imported = mix.ai, mix.human, mix.imported


def fill(message: Any, fields: Mapping[str, Any]) -> None:
    """Give the fields of a message that are unset these values, in place."""
    if isinstance(message, _LEARNS) and message.HasField("lora_rank"):
        fields = {**fields, "learning_rate": _LORA_RATE * fields["learning_rate"]}
    for name, default in fields.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            if not getattr(message, name):
                getattr(message, name).extend(default)
        elif not (message.HasField(name) if field.has_presence else getattr(message, name)):
            setattr(message, name, default)


def with_engines(spec: run_pb2.RunSpec) -> run_pb2.RunSpec:
    """Copy of ``spec`` with the engines that `charter up` starts where it names none: ``auto`` and ``transformers``."""
    filled = run_pb2.RunSpec()
    filled.CopyFrom(spec)
    filled.policy.engine = filled.policy.engine or "auto"
    filled.judge.engine = filled.judge.engine or "transformers"
    return filled


def with_addresses(spec: run_pb2.RunSpec, services: run_pb2.ServiceAddresses) -> run_pb2.RunSpec:
    """Copy of ``spec`` in which every service address that it leaves out is the one in ``services``."""
    filled = run_pb2.RunSpec()
    filled.CopyFrom(spec)
    for field, value in services.ListFields():
        if field.is_repeated:
            if not getattr(filled.services, field.name):
                getattr(filled.services, field.name).extend(value)
        elif not getattr(filled.services, field.name):
            setattr(filled.services, field.name, value)
    return filled

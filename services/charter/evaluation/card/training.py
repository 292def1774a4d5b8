"""What a run learned from rewards, and what its judge had to do with that, by its spec and by what it left."""

from typing import Literal

from charter.evaluation.card import twin as card
from charter.evaluation.report.model_names import model_name
from charter.runs.folder import RunFolder
from charter.spec.facts import AI, algorithm_name, label_sources, needs_preference_model, needs_reinforcement
from charter.v1 import judge_pb2, run_pb2

Deed = Literal["labels", "ratings", "comparisons", "revisions"]


def reinforcement_of(run: RunFolder, spec: run_pb2.RunSpec) -> card.Reinforcement | None:
    """How the policy learned from rewards; None for a run that learns from what is written alone."""
    if not needs_reinforcement(spec):
        return None
    ppo = spec.ppo
    pull: Literal["reward", "loss", "beta"] = "reward"
    if ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO:
        pull = "beta"
    elif ppo.algorithm == run_pb2.ALGORITHM_GRPO:
        pull = "loss"
    return card.Reinforcement(
        algorithm=algorithm_name(ppo),
        steps=ppo.steps,
        done=max(run.ppo_steps, default=0),
        episodes_per_step=ppo.episodes_per_step,
        samples_per_prompt=ppo.samples_per_prompt,
        rewards=rewards_of(spec),
        pull=pull,
        pull_coefficient=ppo.dpo_beta if pull == "beta" else ppo.kl_coefficient,
    )


def rewards_of(spec: run_pb2.RunSpec) -> tuple[card.Reward, ...]:
    """The parts of an answer's score."""
    if spec.ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO:
        return (card.Reward("judge_comparison", 1.0),)
    reward = spec.reward
    parts = (
        card.Reward("preference_model", reward.preference_weight),
        card.Reward("judge_rating", reward.judge_weight),
        card.Reward("service", reward.service_weight),
    )
    return tuple(part for part in parts if part.weight > 0)


def judge_of(run: RunFolder, spec: run_pb2.RunSpec) -> card.Judge | None:
    """The judge of the training; None for a run that asks none."""
    if not needs_reinforcement(spec):
        return None
    check = run.judge_check
    measured = None
    if check is not None:
        found = check.calibration
        measured = card.Measured(
            pairs=found.pairs,
            accuracy=card.Interval(found.accuracy, found.accuracy_low, found.accuracy_high),
            shorter_is_better=check.shorter_is_better_accuracy,
            failures=check.failures,
            fitted=check.left_out,
        )
    method = judge_pb2.JudgingMethod.Name(spec.judge.method).removeprefix("JUDGING_METHOD_").lower()
    return card.Judge(
        model=model_name(spec.judge.model),
        engine=run.engine("judge"),
        method=check.method if check is not None else method if spec.judge.method else "",
        ensemble_size=spec.judge.ensemble_size,
        calibration_sha256=run.info.versions.get("judge calibration", "") if run.info else "",
        did=tuple(_deeds(run, spec)),
        measured=measured,
    )


def _deeds(run: RunFolder, spec: run_pb2.RunSpec) -> list[Deed]:
    """What of the training came from the judge."""
    found: list[Deed] = []
    if _labelled(run, spec):
        found.append("labels")
    kinds = {reward.kind for reward in rewards_of(spec)}
    if "judge_rating" in kinds:
        found.append("ratings")
    if "judge_comparison" in kinds:
        found.append("comparisons")
    if "revised" in run.learned:
        found.append("revisions")
    return found


def _labelled(run: RunFolder, spec: run_pb2.RunSpec) -> bool:
    """Whether labels of the judge were learned: as they were counted, else as the spec wants it."""
    if not needs_preference_model(spec):
        return False
    if spec.comparisons.stored:
        # By whoever labelled them.
        return False
    if run.preference_fit is not None and run.preference_fit.mix:
        return any(one.source == AI and one.train_pairs > 0 and one.share > 0 for one in run.preference_fit.mix)
    return AI in label_sources(spec.feedback)

"""The clipped surrogate over tokens, which PPO, GRPO and REINFORCE++ share."""

from torch import Tensor

from charter.v1 import run_pb2
from charter.worker.reinforcement import formulas
from charter.worker.reinforcement.algorithms.base import Experience, Rows, Terms


def clipped_terms(rows: Rows, spec: run_pb2.PpoSpec) -> Terms:
    """Loss of each token, [rows, tokens], with how far the policy has moved."""
    found = formulas.policy_loss(
        rows.logprobs,
        rows.old_logprobs,
        rows.advantages,
        rows.mask,
        ratio_clip=spec.ratio_clip,
        dual_clip=spec.dual_clip if spec.HasField("dual_clip") else None,
        weights=rows.weights,
    )
    return Terms(
        found.loss, {"ratio_mean": found.ratio[rows.mask], "clip_fraction": found.clipped[rows.mask].to(found.ratio)}
    )


def token_weights(experience: Experience, spec: run_pb2.PpoSpec) -> Tensor:
    """Truncated importance weights of each token, [episodes, longest answer]."""
    return formulas.truncated_importance_weights(
        experience.old.logprobs, experience.episodes.sampler_logprobs, experience.mask, spec.importance_ratio_cap
    )

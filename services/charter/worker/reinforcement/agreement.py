"""Whether the replicas serve what the trainer holds: a probe after every update of the weights.

A replica that loaded only a part of the new weights, or keeps a stale cache, still answers; only its log-probs tell.
"""

import torch

from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.reinforcement.update import Learner
from charter.worker.seeds import derive_seed
from charter.worker.training.batches import pack

# Tokens of the probe's answer.
_TOKENS = 16


def probe_policy(run: Run, version: int) -> dict[str, float]:
    """Have every ready replica answer one prompt and compare its log-probs with the trainer's on the same tokens.

    Returns the metrics ``probe_mismatch_mean`` and ``probe_mismatch_max``, in nats, over all replicas. Raises
    ``RunError`` for a replica whose mean is above ``policy.logprob_tolerance``.
    """
    prompt = run.prompts.train[0].messages
    seed = derive_seed(run.spec.seed, "probe", version)
    answers = run.services.policy.probe(prompt, run.spec.sampling, tokens=_TOKENS, version=version, seed=seed)
    differences = []
    for address, answer in answers:
        sampled = torch.from_numpy(answer.logprobs.copy())
        own = run.leader.with_learner(_logprobs, answer.prompt_token_ids, answer.token_ids)
        difference = (own - sampled).abs()
        # Not a number counts as a difference too.
        if not difference.mean().item() <= run.spec.policy.logprob_tolerance:
            raise RunError(
                f"the policy at {address} does not compute what the trainer does: with weight version {version} their "
                f"log-probs of a probe differ by {difference.mean().item():.3g} nats on average (largest "
                f"{difference.max().item():.3g}), policy.logprob_tolerance is {run.spec.policy.logprob_tolerance:g}. "
                "Restart that replica; if it stays so, its engine or precision is not fit for this model"
            )
        differences.append(difference)
    everything = torch.cat(differences)
    return {"probe_mismatch_mean": everything.mean().item(), "probe_mismatch_max": everything.max().item()}


@torch.no_grad()
def _logprobs(learner: Learner, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """Of the answer's tokens, on the CPU, [tokens]."""
    return learner.actor.logprobs(pack([(prompt, answer)], learner.actor.device), learner.temperature).cpu()

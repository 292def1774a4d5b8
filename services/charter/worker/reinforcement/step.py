"""The arithmetic of one step: from scored episodes to updated models and the step's numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from charter.worker.reinforcement import formulas
from charter.worker.reinforcement.algorithms.base import Experience, Prepared, Targets
from charter.worker.reinforcement.algorithms.ppo import explained_variance
from charter.worker.reinforcement.formulas import Moments
from charter.worker.reinforcement.update import Learner
from charter.worker.training.batches import Episodes


class Controls(NamedTuple):
    """What one step hands to the next besides the models."""

    kl_coefficient: float
    # Of all scores of the run so far.
    scores: Moments = Moments()


class TokenFigures(NamedTuple):
    """What a step finds of the tokens of one answer, before it learns; each [tokens]. Empty where there is none."""

    # log p - log p_ref, nats.
    log_ratios: Sequence[float] = ()
    advantages: Sequence[float] = ()
    # The critic's, of the state before the token.
    values: Sequence[float] = ()


class Learned(NamedTuple):
    """What comes of a step besides the models."""

    # By metric name.
    numbers: dict[str, float]
    # Of the next step.
    controls: Controls
    # Of the episodes that were asked about.
    figures: list[TokenFigures]


def learn(learner: Learner, episodes: Episodes, step: int, controls: Controls, shown: Sequence[int] = ()) -> Learned:
    """Update the models from the episodes of a step.

    Args:
        learner: updated in place.
        episodes: sampled from the learner's present policy or, as their ages say, from earlier ones.
        step: of the run, from 0.
        controls: of this step.
        shown: episodes whose tokens' figures are wanted.
    """
    spec = learner.spec
    mask = episodes.mask
    moments = formulas.add_moments(controls.scores, episodes.scores)
    scores = formulas.normalise_scores(episodes.scores, moments) if spec.normalise_scores else episodes.scores
    old = learner.prepare(episodes)
    experience = Experience(
        episodes=episodes,
        old=old,
        scores=formulas.answer_scores(
            scores,
            episodes.ended,
            clip=spec.score_clip if spec.HasField("score_clip") else None,
            missing_eos_penalty=spec.missing_eos_penalty,
        ),
        kl=formulas.kl_k1(old.logprobs, old.reference_logprobs, mask),
        mask=mask,
        kl_coefficient=controls.kl_coefficient,
        step=step,
    )
    targets = learner.algorithm.targets(experience, learner.value_head)
    learner.set_learning_rates(step)
    train_actor = learner.critic is None or step >= spec.critic_warmup_steps
    numbers = learner.update(episodes, old, targets, train_actor=train_actor)
    numbers |= learner.algorithm.score_numbers(episodes.scores) | _numbers(experience, targets, old)
    kl_coefficient = controls.kl_coefficient
    if spec.HasField("kl_target"):
        numbers["kl_target"] = spec.kl_target
        kl_coefficient = formulas.adapt_kl_coefficient(kl_coefficient, numbers["kl_k1"], spec.kl_target)
    figures = [_figures(experience, targets, row, len(episodes.answers[row])) for row in shown]
    return Learned(numbers, Controls(kl_coefficient, moments), figures)


def _figures(experience: Experience, targets: Targets, row: int, tokens: int) -> TokenFigures:
    found = (experience.kl, targets.advantages if targets.are_advantages else None, targets.values)
    return TokenFigures(*([] if one is None else one[row, :tokens].tolist() for one in found))


def _numbers(experience: Experience, targets: Targets, old: Prepared) -> dict[str, float]:
    """What the episodes say, by metric name."""
    episodes, mask = experience.episodes, experience.mask
    difference = (old.logprobs - episodes.sampler_logprobs)[mask]
    numbers = {
        "kl_k1": experience.kl.sum(dim=1).mean().item(),
        "kl_k3": formulas.kl_k3(old.logprobs, old.reference_logprobs, mask).sum(dim=1).mean().item(),
        "kl_coefficient": experience.kl_coefficient,
        "response_tokens_mean": mask.sum(dim=1).to(old.logprobs).mean().item(),
        "eos_share": episodes.ended.to(old.logprobs).mean().item(),
        "entropy": formulas.masked_mean(old.entropies, mask).item(),
        "importance_ratio_mean": formulas.probability_ratio(old.logprobs, episodes.sampler_logprobs, mask)[mask]
        .mean()
        .item(),
        "logprob_mismatch_mean": difference.abs().mean().item(),
        "logprob_mismatch_max": difference.abs().max().item(),
        "token_age_mean": formulas.masked_mean(episodes.ages.to(old.logprobs), mask).item(),
    }
    if targets.rewards is not None:
        rewards = targets.rewards.sum(dim=1)
        numbers["reward_mean"] = rewards.mean().item()
        low, median, high = rewards.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=rewards.dtype)).tolist()
        numbers |= {"reward_p10": low, "reward_p50": median, "reward_p90": high}
        correlated = formulas.pearson(mask.sum(dim=1), rewards)
        if correlated is not None:
            numbers["length_reward_correlation"] = correlated
    if targets.values is not None and targets.returns is not None:
        explained = explained_variance(targets.values, targets.returns, mask)
        if explained is not None:
            numbers["explained_variance"] = explained
    return numbers

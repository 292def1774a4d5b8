"""Rollouts: the policy's answers to prompts, with their scores.

A failed call or a missing answer raises ``ServiceError`` or ``RunError``. An answer that cannot be scored is left out:
no failure becomes a reward.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from charter.data.prompts import TaskPrompt
from charter.v1 import run_pb2
from charter.worker.clients.failed import Failed
from charter.worker.clients.policy import Answer
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.metrics import BY_DIMENSION, TOKEN_AGE
from charter.worker.reinforcement.sampling import rewards
from charter.worker.training.batches import Episodes


@dataclass(frozen=True, slots=True)
class Batch:
    """The answers of a step, [prompts][samples], the seconds that sampling them took, and the seed that drew them."""

    groups: list[list[Answer]]
    seconds: float
    seed: int


def sample(
    run: Run, prompts: Sequence[TaskPrompt], *, version: int, seed: int, broken_off: threading.Event
) -> list[list[Answer]]:
    """A step's answers to each prompt, [prompts][samples]; versions and errors as ``Services.generate``."""
    return run.services.policy.generate(
        [prompt.messages for prompt in prompts],
        run.spec.sampling,
        version=version,
        seed=seed,
        samples_per_prompt=run.spec.ppo.samples_per_prompt,
        broken_off=broken_off,
    )


@dataclass(frozen=True, slots=True)
class Scored:
    """A step's answers, prompt after prompt, with what they scored; and the episodes of those that have a score."""

    prompts: list[TaskPrompt]
    # Number of the prompt that each answers, from 0.
    groups: list[int]
    answers: list[Answer]
    # Score of each answer, for online DPO P(it is the better one of its pair); or why it is left out.
    scores: list[float | Failed]
    # None where every answer is left out.
    episodes: Episodes | None


def score(
    run: Run,
    prompts: Sequence[TaskPrompt],
    groups: Sequence[Sequence[Answer]],
    seed: int,
    *,
    version: int,
    preference_version: int,
) -> Scored:
    """The answers with their scores, those to the same prompt side by side.

    ``seed`` draws the judge's principles, ``version`` is that of the weights that will learn from the answers.
    """
    answers = [answer for group in groups for answer in group]
    asked = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    if run.spec.ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO:
        scores = rewards.compare(run, prompts, groups, seed)
    else:
        scores = rewards.score(run, asked, [answer.text for answer in answers], seed, preference_version)
    for answer in answers:
        for written_by in set(answer.versions):
            TOKEN_AGE.observe(version - written_by)
    numbers = [number for number, group in enumerate(groups) for _ in group]
    kept = [
        (answer, number, score)
        for answer, number, score in zip(answers, numbers, scores, strict=True)
        if not isinstance(score, Failed)
    ]
    episodes = None
    if kept:
        chosen, of_prompt, known = zip(*kept, strict=True)
        episodes = episodes_of(chosen, known, version, of_prompt)
    return Scored(asked, numbers, answers, scores, episodes)


def scores_by_dimension(run: Run, scored: Scored) -> dict[str, float]:
    """Mean score by dimension of the prompts; ``other`` for those that the constitution, which bounds them, lacks.

    Nothing with online DPO, whose scores add to 1 within a pair.
    """
    if run.spec.ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO:
        return {}
    scores: dict[str, list[float]] = {}
    for prompt, score in zip(scored.prompts, scored.scores, strict=True):
        if not isinstance(score, Failed):
            scores.setdefault(run.judged_dimension(prompt.dimension) or "other", []).append(score)
    return {f"{BY_DIMENSION}{name}": fmean(values) for name, values in scores.items()}


def episodes_of(
    answers: Sequence[Answer], scores: Sequence[float], version: int, groups: Sequence[int] | None = None
) -> Episodes:
    """Put answers and scores together; weights ``version`` will learn from them.

    ``groups`` is the number of the prompt that each answers; None where all prompts differ.

    Raises ``RunError`` for an answer without tokens, or whose tokens do not all have a log-prob and a version.
    """
    longest = max(len(answer.token_ids) for answer in answers)
    logprobs = torch.zeros(len(answers), longest)
    ages = torch.zeros(len(answers), longest, dtype=torch.int64)
    for row, answer in enumerate(answers):
        tokens = len(answer.token_ids)
        if not answer.prompt_token_ids or not tokens or {len(answer.logprobs), len(answer.versions)} != {tokens}:
            raise RunError(
                f"the policy service sent an answer of {tokens} tokens with {len(answer.logprobs)} log-probs and "
                f"{len(answer.versions)} weight versions to a prompt of {len(answer.prompt_token_ids)} tokens; see its "
                "log"
            )
        logprobs[row, :tokens] = torch.from_numpy(answer.logprobs)
        ages[row, :tokens] = version - torch.tensor(answer.versions)
    return Episodes(
        prompts=tuple(answer.prompt_token_ids for answer in answers),
        answers=tuple(answer.token_ids for answer in answers),
        groups=torch.arange(len(answers)) if groups is None else torch.tensor(groups),
        ended=torch.tensor([answer.ended for answer in answers]),
        scores=torch.tensor(scores, dtype=torch.float32),
        sampler_logprobs=logprobs,
        ages=ages,
    )

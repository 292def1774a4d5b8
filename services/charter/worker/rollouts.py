"""Rollouts: the policy's answers to prompts, scored by the preference service.

A failed call, a missing answer or a missing score raises ``ServiceError`` or ``RunError``; none becomes a reward.
"""

from collections.abc import Sequence

import torch

from charter.worker.batches import Episodes
from charter.worker.clients import Answer
from charter.worker.context import PREFERENCE_VERSION, Run
from charter.worker.errors import RunError
from charter.worker.prompts import TaskPrompt


def sample(run: Run, prompts: Sequence[TaskPrompt], *, version: int, seed: int) -> list[Answer]:
    """One answer to each prompt by weights ``version``."""
    messages = [prompt.messages for prompt in prompts]
    samples = run.services.generate(messages, run.spec.sampling, version=version, seed=seed)
    return [answer for (answer,) in samples]


def score(run: Run, prompts: Sequence[TaskPrompt], answers: Sequence[Answer]) -> Episodes:
    """The answers with their preference scores."""
    items = [(prompt.messages, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
    return episodes_of(answers, run.services.score(items, PREFERENCE_VERSION))


def episodes_of(answers: Sequence[Answer], scores: Sequence[float]) -> Episodes:
    """Put answers and scores together. Raises ``RunError`` for an answer without tokens or log-probs."""
    longest = max(len(answer.token_ids) for answer in answers)
    logprobs = torch.zeros(len(answers), longest)
    for row, answer in enumerate(answers):
        if not answer.prompt_token_ids or not answer.token_ids or len(answer.logprobs) != len(answer.token_ids):
            raise RunError(
                f"the policy service sent an answer of {len(answer.token_ids)} tokens with {len(answer.logprobs)} "
                f"log-probs to a prompt of {len(answer.prompt_token_ids)} tokens; see its log"
            )
        logprobs[row, : len(answer.token_ids)] = torch.from_numpy(answer.logprobs)
    return Episodes(
        prompts=tuple(answer.prompt_token_ids for answer in answers),
        answers=tuple(answer.token_ids for answer in answers),
        ended=torch.tensor([answer.ended for answer in answers]),
        scores=torch.tensor(scores, dtype=torch.float32),
        sampler_logprobs=logprobs,
    )

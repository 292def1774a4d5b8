"""Learners on tiny real models, made-up episodes, and sampled ones with a known reward."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from charter.spec.defaults import fill_defaults
from charter.spec.facts import has_own_critic
from charter.v1 import run_pb2
from charter.worker.reinforcement.update import Learner
from charter.worker.training import ranks
from charter.worker.training.batches import Episodes
from charter.worker.training.lora import add_lora
from charter.worker.training.models import Critic, LanguageModel
from torch import Tensor, nn

CPU = torch.device("cpu")
TEMPERATURE = 0.8


def ppo_spec(**values: Any) -> run_pb2.PpoSpec:
    return fill_defaults(run_pb2.RunSpec(ppo=run_pb2.PpoSpec(**values))).ppo


def make_learner(model: Path, *, temperature: float = TEMPERATURE, **values: Any) -> Learner:
    """A learner whose critic, if its algorithm needs one, starts with a random head."""
    spec = ppo_spec(**values)

    def load_critic(device: torch.device) -> Critic:
        critic = Critic.from_policy(model, device)
        nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
        if spec.HasField("lora_rank"):
            add_lora(critic.backbone, spec.lora_rank, seed=0)
        return critic

    def load_actor(device: torch.device) -> LanguageModel:
        actor = LanguageModel.load(model, device, shared_trunk=spec.shared_trunk)
        if spec.HasField("lora_rank"):
            add_lora(actor.model, spec.lora_rank, seed=0)
        return actor

    return Learner(
        spec=spec,
        temperature=temperature,
        actor=ranks.load_sharded(load_actor, CPU),
        reference=None if spec.HasField("lora_rank") else ranks.load_sharded(partial(LanguageModel.load, model), CPU),
        critic=ranks.load_sharded(load_critic, CPU) if has_own_critic(spec) else None,
        device=CPU,
    )


def critic_of(learner: Learner) -> Critic:
    assert learner.critic is not None
    return learner.critic


def make_episodes(seed: int = 0, count: int = 7, shared: int = 0) -> Episodes:
    """Random prompts, answers, ends, scores and log-probs of unequal lengths.

    With ``shared`` all prompts begin with so many tokens, and two are the same with answers that begin alike. Two
    neighbours count as answers to one prompt.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(least: int, most: int) -> tuple[int, ...]:
        length = int(torch.randint(least, most, (), generator=generator))
        return tuple(torch.randint(3, 200, (length,), generator=generator).tolist())

    answers = [ids(1, 9) for _ in range(count)]
    prompts = [ids(2, 12) for _ in range(count)]
    if shared:
        beginning = ids(shared, shared + 1)
        prompts = [beginning + prompt for prompt in prompts]
        prompts[3] = prompts[1]
        answers[1] = (*ids(10, 11), *answers[1])
        answers[3] = (*answers[1][:9], *answers[3])
    return Episodes(
        prompts=tuple(prompts),
        answers=tuple(answers),
        groups=torch.arange(count) // 2,
        ended=torch.rand(count, generator=generator) < 0.5,
        scores=torch.randn(count, generator=generator),
        sampler_logprobs=-6 * torch.rand(count, max(map(len, answers)), generator=generator),
        ages=torch.zeros(count, max(map(len, answers)), dtype=torch.int64),
    )


@torch.no_grad()
def sample_episodes(
    learner: Learner,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    reward: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Episodes:
    """An answer of ``tokens`` tokens to each prompt, from the learner's policy at its temperature.

    Args:
        prompts: token ids, all of one length.
        reward: answers, int64 [episodes, tokens] -> scores, float32 [episodes].
        generator: of every draw.
    """
    rows = torch.tensor([list(prompt) for prompt in prompts])
    drawn: list[Tensor] = []
    logprobs = []
    cache = None
    for _ in range(tokens):
        output = learner.actor.model(drawn[-1] if drawn else rows, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits: Tensor = output.logits[:, -1] / learner.temperature
        drawn.append(torch.multinomial(logits.softmax(dim=1), 1, generator=generator))
        logprobs.append(logits.log_softmax(dim=1).gather(1, drawn[-1]))
    answers = torch.cat(drawn, dim=1)
    return Episodes(
        prompts=tuple(tuple(prompt) for prompt in prompts),
        answers=tuple(tuple(row) for row in answers.tolist()),
        groups=torch.arange(len(answers)) // learner.spec.samples_per_prompt,
        ended=torch.ones(len(answers), dtype=torch.bool),
        scores=reward(answers),
        sampler_logprobs=torch.cat(logprobs, dim=1),
        ages=torch.zeros_like(answers),
    )


def judged(episodes: Episodes) -> Episodes:
    """Scores of online DPO: P(better of its pair) by Bradley and Terry, from the rewards' differences."""
    pairs = episodes.scores.view(-1, 2)
    return replace(episodes, scores=torch.sigmoid(8 * (pairs - pairs.flip(1))).flatten())

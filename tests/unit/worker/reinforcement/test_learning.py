"""Every algorithm learns a known reward, from real samples of a tiny random model, and not by luck.

The reward of an answer is the share of its tokens with a small id. Three seeds each: the gain on the untrained policy
must be many standard errors; with a great KL coefficient it must be a small part of that gain; with the reward's sign
turned the policy must go the other way.
"""

from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from charter.v1 import run_pb2
from charter.worker.reinforcement.algorithms import ALGORITHMS
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import Learner
from torch import Tensor

from tests.support.learners import judged, make_learner, sample_episodes

SEEDS = (0, 1, 2)
STEPS, EPISODES, TOKENS, MEASURED = 16, 64, 6, 512
PROMPTS = [(10, 11, 12, 13), (40, 30, 20, 10), (7, 99, 7, 99), (150, 3, 90, 25)]
# What pulls to the reference: ten times this is beta in online DPO, this the KL coefficient in the others.
WEAK, STRONG = 0.01, 30.0
# Largest part of the gain that may be left under the strong pull. Beta does not weigh a penalty against the labels, it
# only makes the margin small that satisfies them, and Adam's steps have their length whatever the margin is.
HELD = {"ALGORITHM_ONLINE_DPO": 0.6}
HELD_ELSEWHERE = 0.25


def reward(answers: Tensor) -> Tensor:
    return (answers < 130).float().mean(dim=1)


def rewards_of(learner: Learner, seed: int) -> list[float]:
    """Rewards of fresh answers, from random numbers that training does not use."""
    prompts = PROMPTS * (MEASURED // len(PROMPTS))
    generator = torch.Generator().manual_seed(1000 + seed)
    sampled = sample_episodes(learner, prompts, tokens=TOKENS, reward=reward, generator=generator)
    rewards: list[float] = sampled.scores.tolist()
    return rewards


def train(model: Path, algorithm: str, seed: int, sign: float, pull: float) -> tuple[float, float]:
    """Gain of the mean reward, and its standard error."""
    learner = make_learner(
        model,
        temperature=1.0,
        algorithm=algorithm,
        steps=STEPS,
        learning_rate=1e-2,
        critic_learning_rate=1e-2,
        dpo_beta=10 * pull,
    )
    group = learner.spec.samples_per_prompt
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    before = rewards_of(learner, seed)
    controls = Controls(pull)
    for step in range(STEPS):
        prompts = [PROMPTS[place // group % len(PROMPTS)] for place in range(EPISODES)]
        episodes = sample_episodes(
            learner, prompts, tokens=TOKENS, reward=lambda answers: sign * reward(answers), generator=generator
        )
        if algorithm == "ALGORITHM_ONLINE_DPO":
            episodes = judged(episodes)
        numbers, controls, _ = learn(learner, episodes, step, controls)
        assert numbers["logprob_mismatch_max"] < 1e-4
    after = rewards_of(learner, seed)
    error = ((stdev(before) ** 2 + stdev(after) ** 2) / MEASURED) ** 0.5
    return mean(after) - mean(before), error


@pytest.mark.parametrize("algorithm", [run_pb2.Algorithm.Name(number) for number in ALGORITHMS])
def test_learns_a_known_reward(tiny_model: Path, algorithm: str) -> None:
    gains = {}
    for name, sign, pull in (("up", 1.0, WEAK), ("down", -1.0, WEAK), ("held", 1.0, STRONG)):
        gains[name] = [train(tiny_model, algorithm, seed, sign, pull) for seed in SEEDS]
    for gain, error in gains["up"]:
        assert gain > 5 * error, gains
    for gain, error in gains["down"]:
        assert gain < -5 * error, gains
    for (held, _), (gain, _) in zip(gains["held"], gains["up"], strict=True):
        assert abs(held) < HELD.get(algorithm, HELD_ELSEWHERE) * gain, gains

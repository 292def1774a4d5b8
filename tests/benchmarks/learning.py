"""Whether each algorithm learns a known reward on a real model: three seeds up, down, and held by a strong pull.

    python -m tests.benchmarks.learning MODEL [--algorithms ppo grpo]

The reward of an answer is the share of its tokens with the letter e. Answers of four tokens continue the first six
tokens of a text; LoRA adapters learn in six steps of 16 answers. Gains are on 96 fresh answers, drawn with the same
random numbers before and after, in standard errors of the difference of two means (z).
"""

import argparse
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from charter.v1 import run_pb2
from charter.worker.reinforcement.algorithms import ALGORITHMS
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import Learner
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from tests.support.learners import judged, make_learner, sample_episodes

CONSOLE = Console(width=120)
SEEDS = (0, 1, 2)
STEPS, EPISODES, TOKENS, MEASURED = 6, 16, 4, 96
RANK, LEARNING_RATE = 8, 6e-3
TEXTS = (
    "My favourite thing about the summer is that we can",
    "In the morning she went to the market and bought",
    "The most important part of a good plan is what",
    "Scientists have found that many animals can learn to",
)
PROMPT_TOKENS = 6
# As in tests/unit/worker/reinforcement/test_learning.py: the KL coefficient, and a tenth of beta in online DPO.
WEAK, STRONG = 0.01, 30.0
TRIALS = {"up": (1.0, WEAK), "down": (-1.0, WEAK), "held": (1.0, STRONG)}


class Task:
    """Prompts and reward in the model's own tokens."""

    def __init__(self, model: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        self.prompts: list[tuple[int, ...]] = [tuple(tokenizer(text).input_ids[:PROMPT_TOKENS]) for text in TEXTS]
        self._untrained: dict[int, list[float]] = {}
        with_e = [float("e" in tokenizer.decode([token]).lower()) for token in range(len(tokenizer))]
        self._with_e = torch.tensor(with_e)

    def reward(self, answers: Tensor) -> Tensor:
        """Token ids [answers, tokens] -> rewards [answers]."""
        return self._with_e[answers].mean(dim=1)

    def measure(self, learner: Learner, seed: int) -> list[float]:
        """Rewards of fresh answers."""
        prompts = self.prompts * (MEASURED // len(self.prompts))
        generator = torch.Generator().manual_seed(1000 + seed)
        sampled = sample_episodes(learner, prompts, tokens=TOKENS, reward=self.reward, generator=generator)
        rewards: list[float] = sampled.scores.tolist()
        return rewards

    def untrained(self, learner: Learner, seed: int) -> list[float]:
        """The same of a learner that has not learned yet: they are all alike."""
        if seed not in self._untrained:
            self._untrained[seed] = self.measure(learner, seed)
        return self._untrained[seed]


def train(task: Task, model: Path, algorithm: str, seed: int, trial: str) -> tuple[float, float]:
    """Mean reward gained, and its standard error."""
    sign, pull = TRIALS[trial]
    learner = make_learner(
        model,
        temperature=1.0,
        algorithm=algorithm,
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        critic_learning_rate=LEARNING_RATE,
        lora_rank=RANK,
        dpo_beta=10 * pull,
    )
    group = learner.spec.samples_per_prompt
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    before = task.untrained(learner, seed)
    controls = Controls(pull)
    for step in range(STEPS):
        prompts = [task.prompts[place // group % len(task.prompts)] for place in range(EPISODES)]
        episodes = sample_episodes(
            learner, prompts, tokens=TOKENS, reward=lambda answers: sign * task.reward(answers), generator=generator
        )
        if algorithm == "ALGORITHM_ONLINE_DPO":
            episodes = judged(episodes)
        _, controls, _ = learn(learner, episodes, step, controls)
    after = task.measure(learner, seed)
    error = ((stdev(before) ** 2 + stdev(after) ** 2) / MEASURED) ** 0.5
    return mean(after) - mean(before), error


def main() -> None:
    """Train them all, and show each as it ends."""
    names = {run_pb2.Algorithm.Name(number).removeprefix("ALGORITHM_").lower(): number for number in ALGORITHMS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--algorithms", nargs="+", choices=names, default=list(names))
    options = parser.parse_args()
    task, start = Task(options.model), time.monotonic()
    table = Table("algorithm", "trial", *(f"seed {seed}: gain (z)" for seed in SEEDS), "mean gain")
    for name in options.algorithms:
        for trial in TRIALS:
            found = []
            for seed in SEEDS:
                gain, error = train(task, options.model, run_pb2.Algorithm.Name(names[name]), seed, trial)
                found.append((gain, error))
                seconds = time.monotonic() - start
                CONSOLE.print(f"{seconds:.0f} s: {name} {trial} seed {seed}: {gain:+.3f} ± {error:.3f}")
            cells = [f"{gain:+.3f} ({gain / error:+.1f})" for gain, error in found]
            table.add_row(name, trial, *cells, f"{mean(gain for gain, _ in found):+.3f}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()

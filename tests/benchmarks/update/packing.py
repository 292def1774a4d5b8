"""Where the time of an update goes, and what packing saves against padding, in CPU seconds of one thread of one run.

    python -m tests.benchmarks.update.packing MODEL PROMPTS

with a model folder and a JSONL of prompts. Both sides read the same 16 answers of random tokens to real prompts, whose
common beginning the packed side computes once; padded groups hold rows of similar length. CPU seconds, not wall time:
then a busy machine does not decide.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt
from charter.inference.local.model_check import UNLIMITED
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.reinforcement import update
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import Learner
from charter.worker.training.batches import Episodes, collate, packs
from charter.worker.training.models import Critic, LanguageModel
from charter.worker.training.packing import packed_hidden
from rich.console import Console

CONSOLE = Console(width=120)
EPISODES, MOST_TOKENS = 16, 48
CPU = torch.device("cpu")


def by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows so that rows times the longest row of a group stay within ``budget`` tokens.

    Rows are taken longest first, so that rows of similar length share a group and little is padded, and the first group
    shows at once whether memory suffices. A row longer than the budget is a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[list[int]] = []
    longest = 0
    for row in order:
        if groups and (len(groups[-1]) + 1) * longest <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = lengths[row]
    return groups


def make_episodes(model: str, prompts: Path, seed: int = 0) -> Episodes:
    """Answers of 48 tokens, some shorter, to real prompts; the answers' tokens are random, which costs the same."""
    tokenizer, draw = ChatTokenizer.load(model), random.Random(seed)
    lines = draw.sample(prompts.read_text(encoding="utf-8").splitlines(), EPISODES)
    texts = [json.loads(line) for line in lines]
    prompted = [tuple(tokenizer.prompt_ids(Prompt((ChatMessage("user", text["prompt"]),)))) for text in texts]

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 40_000) for _ in range(count))

    answers = tuple(ids(MOST_TOKENS if draw.random() < 0.7 else draw.randint(5, MOST_TOKENS)) for _ in prompted)
    return Episodes(
        prompts=tuple(prompted),
        answers=answers,
        groups=torch.arange(EPISODES),
        ended=torch.ones(EPISODES, dtype=torch.bool),
        scores=torch.randn(EPISODES, generator=torch.Generator().manual_seed(seed)),
        sampler_logprobs=torch.zeros(EPISODES, max(map(len, answers))),
        ages=torch.zeros(EPISODES, max(map(len, answers)), dtype=torch.int64),
    )


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def padded_hidden(model: Any, episodes: Episodes, rows: list[int]) -> torch.Tensor:
    """The same sequences side by side, padded on the right; causal attention needs no mask for that."""
    sequences = [torch.tensor([*episodes.prompts[row], *episodes.answers[row][:-1]]) for row in rows]
    hidden: torch.Tensor = model(
        input_ids=torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), use_cache=False
    ).last_hidden_state
    return hidden


def groups(make: Callable[[list[int], int], list[list[int]]], lengths: list[int]) -> Iterator[list[int]]:
    """Rows of each micro-batch of one of two minibatches."""
    yield from make(lengths[: EPISODES // 2], update.BACKWARD_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    episodes = make_episodes(options.model, options.prompts)
    language_model = LanguageModel.load(options.model, CPU)
    trunk = language_model.model.base_model
    lengths = episodes.lengths
    padding = 1 - sum(lengths[:8]) / sum(
        len(rows) * max(lengths[row] for row in rows) for rows in groups(by_tokens, lengths)
    )
    CONSOLE.print(f"tokens {sum(lengths)}, padding of a minibatch in groups of similar length {padding:.0%}")

    def forward_and_backward(hidden: Callable[[list[int]], torch.Tensor], make: Any) -> None:
        for rows in groups(make, lengths):
            torch.autograd.backward(hidden(rows).sum())
        trunk.zero_grad()

    def packed(rows: list[int]) -> torch.Tensor:
        return packed_hidden(trunk, collate(episodes, rows, CPU), torch.float32, UNLIMITED)

    with torch.no_grad():
        packed([0])  # The first call allocates.
    figures = {
        "packed": seconds(lambda: forward_and_backward(packed, packs)),
        "padded": seconds(lambda: forward_and_backward(lambda rows: padded_hidden(trunk, episodes, rows), by_tokens)),
    }
    CONSOLE.print(
        f"forward and backward of the trunk, 8 answers: padded {figures['padded']:.1f} s, "
        f"packed {figures['packed']:.1f} s, ratio {figures['padded'] / figures['packed']:.2f}"
    )
    learner = Learner(
        spec=fill_defaults(run_pb2.RunSpec()).ppo,
        temperature=1.0,
        actor=language_model,
        reference=LanguageModel.load(options.model, CPU),
        critic=Critic.from_policy(options.model, CPU),
        device=CPU,
    )
    parts: dict[str, float] = {}

    def timed(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return plain(*arguments, **named)
            finally:
                parts[name] = parts.get(name, 0.0) + time.process_time() - start

        setattr(owner, name, call)

    for name in ("prepare", "_actor_step", "_critic_step", "_step"):
        timed(learner, name)
    whole = seconds(lambda: learn(learner, episodes, 1, Controls(0.05)))
    shares = ", ".join(f"{name} {part / whole:.0%}" for name, part in parts.items())
    CONSOLE.print(f"one step without sampling and scoring: {whole:.1f} s, of which {shares}")
    CONSOLE.print("(_step, the gradient norm and Adam, is part of the two before it)")


if __name__ == "__main__":
    main()

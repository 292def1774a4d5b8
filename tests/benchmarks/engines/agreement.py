"""vLLM's log-probs against the trainer's on the same tokens, float32 and bfloat16 on either side, in one run.

    python -m tests.benchmarks.engines.agreement --model FOLDER [--new-tokens 64]

vLLM samples answers in each type; the trainer computes the log-probs of their tokens with its weights in float32 and
its matrix products in each type, as `ppo.precision` sets them. PPO's importance correction is made of the ratio
exp(trainer's log-prob - sampler's) of each token.
"""

import argparse
import asyncio
import os

import torch
from charter.chat import ChatMessage
from charter.inference.engine import GeneratedSample, Prompt, Sampling
from charter.inference.vllm.engine import VllmEngine
from charter.worker.training.batches import pack
from charter.worker.training.models import LanguageModel
from rich.console import Console
from rich.table import Table

from tests.benchmarks.engines.prompts import REQUESTS

CONSOLE = Console(width=120)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


async def sampled(model: str, dtype: str, new_tokens: int) -> list[GeneratedSample]:
    """An answer to each request by vLLM in a type, at temperature 1."""
    engine = VllmEngine(model, dtype=dtype, kv_cache_gib=0.5, max_context_tokens=1024)
    await engine.start()
    try:
        prompts = [Prompt((ChatMessage("user", text),)) for text in REQUESTS]
        return [sample async for sample in engine.generate(prompts, Sampling(new_tokens, seed=1))]
    finally:
        await engine.stop()


@torch.no_grad()
def differences(model: LanguageModel, samples: list[GeneratedSample]) -> torch.Tensor:
    """Trainer's log-prob minus the sampler's of every token, float32 [tokens]."""
    device = torch.device("cpu")
    return torch.cat(
        [
            model.logprobs(pack([(one.prompt_token_ids, one.token_ids)], device), 1.0) - torch.tensor(one.logprobs)
            for one in samples
        ]
    )


def main() -> None:
    """Read the command line, compare every pair of types."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    trainer = LanguageModel.load(arguments.model, torch.device("cpu"))
    title = f"nats; {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    table = Table("vLLM", "trainer", "tokens", "mean", "p99", "max", "mean ratio", "p1 ratio", "p99 ratio", title=title)
    for dtype in TYPES:
        samples = asyncio.run(sampled(arguments.model, dtype, arguments.new_tokens))
        for precision, trainer.precision in TYPES.items():
            difference = differences(trainer, samples)
            size, ratio = difference.abs(), difference.exp()
            table.add_row(
                dtype,
                precision,
                str(len(size)),
                *(f"{one:.2e}" for one in (size.mean(), size.quantile(0.99), size.max())),
                *(f"{one:.5f}" for one in (ratio.mean(), ratio.quantile(0.01), ratio.quantile(0.99))),
            )
    CONSOLE.print(table)


if __name__ == "__main__":
    main()

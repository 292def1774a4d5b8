"""Times the engines against each other on one machine, in one run.

    python -m tests.benchmarks.engines.compare --model FOLDER [--compiled] [--rounds 3]

All engines stay loaded, and the rounds go around them in turn, so that what else the machine does falls on all alike.
"""

import argparse
import asyncio
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Engine, Prompt, Sampling
from charter.inference.load import create_engine
from rich.console import Console
from rich.table import Table

from tests.benchmarks.engines.prompts import REQUESTS

CONSOLE = Console(width=120)
PROMPTS = [Prompt((ChatMessage("user", text),)) for text in REQUESTS]
ANSWER = "That depends on a few things. " * 8


@dataclass
class Timings:
    """Of one engine; one number per round."""

    label: str
    engine: Engine
    start_seconds: float = 0.0
    tokens_per_second: list[float] = field(default_factory=list)
    scored_tokens_per_second: list[float] = field(default_factory=list)
    update_seconds: list[float] = field(default_factory=list)
    memory_gib: float = 0.0


async def measure(timings: Timings, weights: Path, new_tokens: int, version: int) -> None:
    """One round: sample, score, replace the weights."""
    engine = timings.engine
    start = time.perf_counter()
    tokens = 0
    async for sample in engine.generate(PROMPTS, Sampling(new_tokens, temperature=1.0)):
        tokens += len(sample.token_ids)
    timings.tokens_per_second.append(tokens / (time.perf_counter() - start))

    start = time.perf_counter()
    scored = await engine.answer_loglikelihoods([(prompt, ANSWER) for prompt in PROMPTS])
    read = sum(item.prompt_tokens + item.tokens for item in scored if not isinstance(item, ValueError))
    timings.scored_tokens_per_second.append(read / (time.perf_counter() - start))

    start = time.perf_counter()
    await engine.load_weights(weights, version, "0" * 64)
    timings.update_seconds.append(time.perf_counter() - start)
    CONSOLE.print(
        f"{timings.label}: {timings.tokens_per_second[-1]:.0f} sampled and "
        f"{timings.scored_tokens_per_second[-1]:.0f} scored tokens/s, update {timings.update_seconds[-1]:.1f} s"
    )


def resident_gib() -> float:
    """Resident memory of this process and its descendants; pages that they share count more than once."""
    here = psutil.Process()
    return float(sum(process.memory_info().rss for process in [here, *here.children(recursive=True)])) / 2**30


async def run(model: str, *, compiled: bool, rounds: int, new_tokens: int) -> list[Timings]:
    """Start the engines one after the other, then go around them."""
    everything = [
        Timings("transformers float32", create_engine("transformers", model)),
        Timings("vllm float32 eager", create_engine("vllm", model, kv_cache_gib=0.5, max_context_tokens=2048)),
    ]
    if compiled:
        settings = {"kv_cache_gib": 0.5, "max_context_tokens": 2048, "compiled": True}
        everything.append(Timings("vllm float32 compiled", create_engine("vllm", model, **settings)))
    try:
        for timings in everything:
            before = resident_gib()
            start = time.perf_counter()
            await timings.engine.start()
            timings.start_seconds = time.perf_counter() - start
            CONSOLE.print(f"{timings.label}: started in {timings.start_seconds:.0f} s; one short round to warm up")
            await measure(timings, Path(model) / "model.safetensors", 4, 1)
            timings.memory_gib = resident_gib() - before
            timings.tokens_per_second.clear()
            timings.scored_tokens_per_second.clear()
            timings.update_seconds.clear()
        for version in range(2, 2 + rounds):
            for timings in everything:
                await measure(timings, Path(model) / "model.safetensors", new_tokens, version)
    finally:
        for timings in everything:
            await timings.engine.stop()
    return everything


def show(everything: list[Timings], model: str, new_tokens: int) -> None:
    """Print the table, medians first and the range beside them."""
    chat = ChatTokenizer.load(model)
    lengths = [len(ids) for ids in chat.prompts_ids(PROMPTS)]
    CONSOLE.print(
        f"{len(PROMPTS)} prompts of {min(lengths)} to {max(lengths)} tokens, up to {new_tokens} new tokens each; "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end"
    )
    table = Table("engine", "start s", "sampled tokens/s", "scored tokens/s", "weight update s", "memory GiB")
    for timings in everything:
        table.add_row(
            timings.label,
            f"{timings.start_seconds:.0f}",
            _spread(timings.tokens_per_second),
            _spread(timings.scored_tokens_per_second),
            _spread(timings.update_seconds),
            f"{timings.memory_gib:.1f}",
        )
    CONSOLE.print(table)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder with model.safetensors")
    parser.add_argument("--compiled", action="store_true", help="vllm with torch.compile too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    show(
        asyncio.run(
            run(
                arguments.model,
                compiled=arguments.compiled,
                rounds=arguments.rounds,
                new_tokens=arguments.new_tokens,
            )
        ),
        arguments.model,
        arguments.new_tokens,
    )


if __name__ == "__main__":
    main()

"""vLLM through our gRPC service against vLLM called in process, in one run.

    python -m tests.benchmarks.engines.service --model FOLDER [--dtype float32] [--rounds 3]

The service and its client share one process and one engine; the rounds take turns, so that what else the machine does
falls on both alike.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from charter.chat import ChatMessage
from charter.inference.engine import Prompt, Sampling
from charter.policy.server import PolicyConfig, PolicyRoom, build
from charter.rpc.channel import BATCH, connect
from charter.rpc.lifecycle import Listen, serving
from charter.rpc.messages import proto_messages
from charter.v1 import policy_pb2, policy_pb2_grpc
from rich.console import Console

from tests.benchmarks.engines.prompts import REQUESTS

CONSOLE = Console(width=120)
MESSAGES = [(ChatMessage("user", text),) for text in REQUESTS]


async def in_process(room: PolicyRoom, new_tokens: int, seed: int) -> float:
    """Tokens per second of the engine itself."""
    start = time.perf_counter()
    tokens = 0
    prompts = [Prompt(messages) for messages in MESSAGES]
    async for sample in room.engine.generate(prompts, Sampling(new_tokens, seed=seed)):
        tokens += len(sample.token_ids)
    return tokens / (time.perf_counter() - start)


def over_grpc(address: str, new_tokens: int, seed: int) -> float:
    """Tokens per second through the service."""
    request = policy_pb2.GenerateRequest(
        prompts=[policy_pb2.GenerationPrompt(messages=proto_messages(messages)) for messages in MESSAGES],
        sampling=policy_pb2.SamplingParameters(max_new_tokens=new_tokens, seed=seed),
    )
    with connect(address) as channel:
        start = time.perf_counter()
        samples = [one.sample for one in policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=BATCH)]
        seconds = time.perf_counter() - start
    return sum(len(sample.token_ids) for sample in samples) / seconds


async def run(model: str, dtype: str, rounds: int, new_tokens: int) -> None:
    """Start the service, take turns."""
    settings = {"dtype": dtype, "kv_cache_gib": 0.5, "max_context_tokens": 1024}
    with tempfile.TemporaryDirectory() as staging:
        room = build(PolicyConfig(model, Path(staging), "vllm", settings))
        start = time.perf_counter()
        async with serving(room, Listen(), drain_seconds=1.0) as addresses:
            CONSOLE.print(f"started in {time.perf_counter() - start:.0f} s")
            await in_process(room, 4, 0)
            ratios = []
            for seed in range(1, rounds + 1):
                alone = await in_process(room, new_tokens, seed)
                served = await asyncio.to_thread(over_grpc, addresses.main, new_tokens, seed)
                ratios.append(served / alone)
                CONSOLE.print(f"in process {alone:.1f}, over gRPC {served:.1f} tokens/s: {ratios[-1]:.3f}")
    CONSOLE.print(
        f"gRPC / in process: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of vLLM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.model, arguments.dtype, arguments.rounds, arguments.new_tokens))


if __name__ == "__main__":
    main()

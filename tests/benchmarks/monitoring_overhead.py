"""What metrics and tracing cost a Generate, tracing off: ``python -m tests.benchmarks.monitoring_overhead MODEL``.

Both sides of the ratio are CPU time of this process, so that a busy machine does not distort it: everything that is
counted, timed and looked up for one call, against the sampling of the same call by the transformers engine.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
from charter.chat import ChatMessage
from charter.inference.engine import GeneratedSample, Prompt, Sampling
from charter.inference.local.engine import TransformersEngine
from charter.policy.servicer import MeasuredPolicyServicer
from charter.rpc.client_calls import ClientCalls
from charter.rpc.gate import Gate
from charter.rpc.interceptors import _Call

REPEATS = 2000


class _Context:
    """The part of a server's context that the interceptor reads."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("charter-run", "benchmark"), ("charter-step", "1"), ("user-agent", "grpc"))


class _Ended:
    """A call that has ended."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    def add_callback(self, _: object) -> bool:
        return False


class _Details:
    method = "/charter.v1.PolicyService/Generate"
    timeout = metadata = credentials = wait_for_ready = compression = None


async def sample(engine: TransformersEngine, samples: int, tokens: int) -> list[GeneratedSample]:
    """One call."""
    prompt = Prompt((ChatMessage("user", "What is a tide?"),))
    sampling = Sampling(max_new_tokens=tokens, temperature=1.0, top_p=1.0, seed=1)
    return [one async for one in engine.generate([prompt], sampling, samples)]


async def account(servicer: MeasuredPolicyServicer, samples: list[GeneratedSample]) -> None:
    """Everything that is recorded for one call, on both sides of it."""
    ClientCalls().intercept_unary_stream(lambda _details, _request: _Ended(), _Details, None)
    context: Any = _Context()
    async with _Call("server_stream", "charter.v1.PolicyService", "Generate", context):
        start = time.monotonic()
        for one in samples:
            servicer._sampled(one, start)


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    engine = TransformersEngine(str(options.model))
    await engine.start()
    await sample(engine, options.samples, options.tokens)
    begin = time.process_time()
    found = await sample(engine, options.samples, options.tokens)
    sampling = time.process_time() - begin
    servicer = MeasuredPolicyServicer(engine, 256, Gate())
    begin = time.process_time()
    for _ in range(REPEATS):
        await account(servicer, found)
    accounting = (time.process_time() - begin) / REPEATS
    await engine.stop()
    print(  # noqa: T201
        f"one call of {options.samples} samples, {sum(len(one.token_ids) for one in found)} tokens: "
        f"sampling {sampling * 1e3:.1f} ms, accounting {accounting * 1e3:.3f} ms of CPU: {accounting / sampling:.3%}"
    )


if __name__ == "__main__":
    asyncio.run(main())

"""Four fake replicas of different speed: the time of a step's sampling against that of an ideal split of its tokens.

    python -m tests.benchmarks.replicas.spread [--rounds 3]

Each replica writes eight answers at a time, each token in a fixed time, so the ideal is known: all tokens divided by
the sum of the speeds. An equal split, the other number, waits for the slowest replica.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from charter.chat import ChatMessage
from charter.runs.artifacts import Artifacts
from charter.v1 import run_pb2
from charter.worker.clients.services import Services
from charter.worker.reporter import Reporter
from rich.console import Console

from tests.support.processes import Process

CONSOLE = Console(width=120)
SECONDS_PER_TOKEN = (0.01, 0.01, 0.02, 0.04)
SEQUENCES = 8
PROMPTS = [(ChatMessage("user", f"Question {number}?"),) for number in range(768)]
SAMPLING = run_pb2.SamplingSpec(temperature=1.0, max_new_tokens=64)


def main() -> None:
    """Start the replicas, sample, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    speeds = [SEQUENCES / seconds for seconds in SECONDS_PER_TOKEN]
    ratios = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        replicas = [
            stack.enter_context(
                Process(
                    folder,
                    "policy",
                    "--model=fake",
                    "--engine=fake",
                    f"--setting=seconds_per_token={seconds}",
                    f"--setting=sequences={SEQUENCES}",
                )
            )
            for seconds in SECONDS_PER_TOKEN
        ]
        for one in replicas:
            one.wait_serving()
        addresses = run_pb2.ServiceAddresses(
            policy=[one.main for one in replicas],
            policy_control=[one.control for one in replicas],
            judge=replicas[0].main,
            preference=replicas[0].main,
        )
        services = Services(addresses, Reporter(Artifacts(folder, "benchmark"), "benchmark", 1, ""))
        stack.callback(services.close)
        for version in range(1, rounds + 1):
            services.policy.send({"w": torch.full((4,), float(version))}, version)
            start = time.perf_counter()
            answers = services.policy.generate(PROMPTS, SAMPLING, version=version, seed=version)
            seconds = time.perf_counter() - start
            tokens = sum(len(one.token_ids) for (one,) in answers)
            ideal = tokens / sum(speeds)
            equal = tokens / len(speeds) / min(speeds)
            ratios.append(seconds / ideal)
            CONSOLE.print(
                f"{tokens} tokens in {seconds:.1f} s; ideal split {ideal:.1f} s: {seconds / ideal:.2f} times; "
                f"equal split {equal:.1f} s: {equal / ideal:.2f} times"
            )
    CONSOLE.print(
        f"step time / ideal split: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()

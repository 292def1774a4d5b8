"""A weight update over loopback gRPC against a plain copy of the same bytes through a pipe, in one run.

    python -m tests.benchmarks.replicas.weights --model FOLDER [--rounds 5]

The policy is a process of its own with the engine `transformers` in bfloat16. It says itself for how long its engine
generated nothing.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from charter.weights.sender import pack_weights, send_packed
from rich.console import Console
from safetensors.torch import load_file

from tests.support.processes import Process

CONSOLE = Console(width=120)
CHUNK = 1024 * 1024


def drain(reader: int, size: int, done: Connection) -> None:
    """Read so many bytes from a pipe into memory, again and again."""
    buffer = memoryview(bytearray(size))
    while True:
        got = 0
        while got < size:
            got += os.readv(reader, [buffer[got : got + CHUNK]])
        done.send(got)


def pipe_seconds(writer: int, blob: memoryview, done: Connection) -> float:
    """Seconds until the other process has all bytes."""
    start = time.perf_counter()
    sent = 0
    while sent < len(blob):
        sent += os.write(writer, blob[sent : sent + CHUNK])
    done.recv()
    return time.perf_counter() - start


def main() -> None:
    """Take turns between the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder with model.safetensors")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tensors = {name: t.to(torch.bfloat16) for name, t in load_file(f"{arguments.model}/model.safetensors").items()}
    size = len(pack_weights(tensors, 1).blob)
    reader, writer = os.pipe()
    here, there = multiprocessing.Pipe()
    copier = multiprocessing.get_context("fork").Process(target=drain, args=(reader, size, there), daemon=True)
    copier.start()
    pipe, update, paused = list[float](), list[float](), list[float]()
    serve = (f"--model={arguments.model}", "--engine=transformers", "--setting=dtype=bfloat16")
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder), "policy", *serve) as replica:
        replica.wait_serving()
        for version in range(1, arguments.rounds + 1):
            weights = pack_weights(tensors, version)
            pipe.append(pipe_seconds(writer, memoryview(weights.blob), here))
            start = time.perf_counter()
            response = send_packed(replica.control, weights, service="policy", force=True)
            update.append(time.perf_counter() - start)
            paused.append(response.paused_seconds)
            CONSOLE.print(
                f"pipe {pipe[-1]:.2f} s, update {update[-1]:.2f} s: transfer {response.transfer_seconds:.2f} s, "
                f"load {response.load_seconds:.2f} s, generation stood still for {paused[-1]:.4f} s"
            )
    copier.kill()
    ratios = [one / other for one, other in zip(pipe, update, strict=True)]
    still = [one / other for one, other in zip(paused, update, strict=True)]
    CONSOLE.print(
        f"{size / 1e6:.0f} MB; speed of the update / speed of the pipe {_spread(ratios)}; share of the update in which "
        f"generation stands still {_spread(still)}; {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()

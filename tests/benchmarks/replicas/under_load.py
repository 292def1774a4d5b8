"""Updates of the weights while requests go on: how many fail, and for how much of the updates generation stands still.

    python -m tests.benchmarks.replicas.under_load --model FOLDER [--engine transformers] [--updates 20] [--clients 4]

The policy is a process of its own. Each client asks again as soon as it has its answers; the next update begins when
the last one is served.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import grpc
from charter.rpc.channel import BATCH, connect
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2
from charter.weights.sender import pack_weights, send_packed
from rich.console import Console
from safetensors.torch import load_file

from tests.support.processes import Process

CONSOLE = Console(width=120)


class Load:
    """Clients that ask without a pause until ``stop``."""

    def __init__(self, address: str, clients: int) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._address = address
        self._over = threading.Event()
        self._counted = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return when the last answers are there."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        message = types_pb2.Message(role=types_pb2.ROLE_USER, content=f"Tell me something about the number {number}.")
        request = policy_pb2.GenerateRequest(
            prompts=[policy_pb2.GenerationPrompt(messages=[message])] * 4,
            sampling=policy_pb2.SamplingParameters(max_new_tokens=32),
        )
        with connect(self._address) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            while not self._over.is_set():
                try:
                    answers = len(list(stub.Generate(request, timeout=BATCH)))
                except grpc.RpcError as error:
                    with self._counted:
                        self.failed.append(f"{error.code().name}: {error.details()}")
                else:
                    with self._counted:
                        self.answered += answers


def main() -> None:
    """Update under load, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder with model.safetensors")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    tensors = load_file(f"{arguments.model}/model.safetensors")
    other = {name: tensor * 1.001 for name, tensor in tensors.items()}
    seconds = paused = 0.0
    serve = (f"--model={arguments.model}", f"--engine={arguments.engine}", "--setting=dtype=float32")
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder), "policy", *serve) as replica:
        replica.wait_serving()
        load = Load(replica.main, arguments.clients)
        try:
            for version in range(1, arguments.updates + 1):
                weights = pack_weights(other if version % 2 else tensors, version)
                start = time.perf_counter()
                response = send_packed(replica.control, weights, service="policy", force=False)
                seconds += time.perf_counter() - start
                paused += response.paused_seconds
        finally:
            load.stop()
    CONSOLE.print(
        f"{arguments.engine}: {arguments.updates} updates under {arguments.clients} clients: {load.answered} answers, "
        f"{len(load.failed)} requests failed {sorted(set(load.failed))}; {seconds / arguments.updates:.2f} s an "
        f"update, generation stood still for {paused / seconds:.3f} of it; {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()

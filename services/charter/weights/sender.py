"""Sends one version of the weights to every replica at once."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import safetensors.torch
import torch

from charter.rpc.channel import connect
from charter.rpc.errors import explained
from charter.v1 import weights_pb2, weights_pb2_grpc

# 256 KiB to 1 MiB moves fastest over gRPC; larger chunks are slower.
CHUNK_BYTES = 1024 * 1024
# A transfer that takes longer than this has lost its peer.
TRANSFER_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """One version as it was sent: ``seconds`` until the last replica served it, ``size`` in bytes."""

    version: int
    seconds: float
    size: int
    sha256: str


def send_weights(
    addresses: Sequence[str],
    tensors: Mapping[str, torch.Tensor],
    version: int,
    *,
    service: str = "policy",
    force: bool = False,
) -> WeightUpdate:
    """Serve ``tensors`` as ``version`` on every replica; returns when all of them do.

    ``addresses`` are the control ports, ``service`` names them in errors. ``force`` allows a version that
    is not newer than the served one. Raises ``ServiceError`` when a replica did not take them; the others may have.
    """
    if not addresses:
        raise ValueError("no address to send weights to")
    start = time.monotonic()
    blob = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(blob).hexdigest()
    header = weights_pb2.WeightHeader(version=version, size=len(blob), sha256=digest, force=force)

    def send(address: str) -> None:
        with explained(f"{service} weight", address), connect(address) as channel:
            weights_pb2_grpc.WeightServiceStub(channel).LoadWeights(_parts(header, blob), timeout=TRANSFER_SECONDS)

    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        for done in [pool.submit(send, address) for address in addresses]:
            done.result()
    return WeightUpdate(version, time.monotonic() - start, len(blob), digest)


def _parts(header: weights_pb2.WeightHeader, blob: bytes) -> Iterator[weights_pb2.LoadWeightsRequest]:
    yield weights_pb2.LoadWeightsRequest(header=header)
    for start in range(0, len(blob), CHUNK_BYTES):
        yield weights_pb2.LoadWeightsRequest(chunk=blob[start : start + CHUNK_BYTES])

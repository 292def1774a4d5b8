"""Sends one version of the weights: packed once, then to as many replicas as want it."""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import grpc
import torch

from charter.rpc.channel import connect
from charter.rpc.errors import explained
from charter.v1 import weights_pb2, weights_pb2_grpc
from charter.weights.staging import CHUNK_BYTES
from charter.weights.tensor_file import tensor_file

logger = logging.getLogger("charter.weights")

# Answers that may be the fault of the replica that should have passed the weights on.
_PEER_FAILED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS)
# A transfer that takes longer than the first, and than its bytes at this rate, has lost its peer.
_TRANSFER_SECONDS = 1800.0
_SLOWEST_BYTES_PER_SECOND = 20e6


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeights:
    """One version as a safetensors file in memory; ``sha256`` is its digest in hex.

    Those with ``base`` are an adapter for these weights. ``path`` is a file with the same bytes in a shared folder, if
    there is one.
    """

    version: int
    blob: memoryview
    sha256: str
    base: "PackedWeights | None" = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """One version as it was sent: ``seconds`` that it took, ``size`` in bytes."""

    version: int
    seconds: float
    size: int
    sha256: str


def transfer_seconds(size: int) -> float:
    """Deadline of a call that moves so many bytes and has them loaded."""
    return _TRANSFER_SECONDS + size / _SLOWEST_BYTES_PER_SECOND


def pack_weights(tensors: Mapping[str, torch.Tensor], version: int) -> PackedWeights:
    """Copy tensors, wherever they are, into one file in memory."""
    blob = tensor_file(tensors)
    return PackedWeights(version, blob, hashlib.sha256(blob).hexdigest())


def pack_adapter(tensors: Mapping[str, torch.Tensor], version: int, base: PackedWeights) -> PackedWeights:
    """As ``pack_weights`` for an adapter, named as ``WeightHeader.base_sha256`` says, that goes on ``base``."""
    # The digest must tell the same adapter on other weights apart.
    blob = tensor_file(tensors, {"base_sha256": base.sha256})
    return PackedWeights(version, blob, hashlib.sha256(blob).hexdigest(), base=base)


def send_packed(
    address: str, weights: PackedWeights, *, service: str, force: bool, peer: str = ""
) -> weights_pb2.LoadWeightsResponse:
    """Have the replica with this control port serve the weights; returns when it does, with what it took.

    It reads them from the shared folder if they are there, else from the replica with the control port ``peer`` if that
    is given, else, and where that fails, from this call. ``service`` names it in errors. ``force`` allows a version
    that is not newer than the served one. Raises ``ServiceError``.
    """
    header = weights_pb2.WeightHeader(
        version=weights.version,
        size=len(weights.blob),
        sha256=weights.sha256,
        force=force,
        base_sha256="" if weights.base is None else weights.base.sha256,
    )
    with explained(f"{service} weight", address), connect(address) as channel:
        stub = weights_pb2_grpc.WeightServiceStub(channel)

        def send() -> weights_pb2.LoadWeightsResponse:
            return stub.LoadWeights(_parts(header, weights.blob), timeout=transfer_seconds(len(weights.blob)))

        if weights.path:
            header.path = weights.path
        elif peer:
            header.peer = peer
            try:
                return send()
            except grpc.RpcError as error:
                if error.code() not in _PEER_FAILED:
                    raise
                logger.warning("sending again without relay", extra={"service": service, "reason": error.details()})
                header.ClearField("peer")
        return send()


def send_weights(
    address: str,
    tensors: Mapping[str, torch.Tensor],
    version: int,
    *,
    service: str = "policy",
    force: bool = False,
) -> WeightUpdate:
    """Pack ``tensors`` and have one replica serve them as ``version``; arguments and errors as ``send_packed``."""
    start = time.monotonic()
    weights = pack_weights(tensors, version)
    send_packed(address, weights, service=service, force=force)
    return WeightUpdate(version, time.monotonic() - start, len(weights.blob), weights.sha256)


def _parts(header: weights_pb2.WeightHeader, blob: memoryview) -> Iterator[weights_pb2.LoadWeightsRequest]:
    yield weights_pb2.LoadWeightsRequest(header=header)
    if header.WhichOneof("source") is not None:
        return
    for start in range(0, len(blob), CHUNK_BYTES):
        yield weights_pb2.LoadWeightsRequest(chunk=bytes(blob[start : start + CHUNK_BYTES]))

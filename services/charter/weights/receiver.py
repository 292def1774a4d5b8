"""WeightService: stages a version on disk, checks it, then hands it to what serves."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import grpc
from prometheus_client import Counter, Gauge, Histogram

from charter.inference.engine import EngineInfo, WeightMismatchError
from charter.rpc.errors import StatusError
from charter.rpc.lifecycle import Readiness
from charter.v1 import types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.adapter import merge_adapter

VERSION = Gauge("charter_weight_version", "Version of the weights that are served.", ["service"])
TRANSFER_SECONDS = Histogram(
    "charter_weight_transfer_seconds",
    "Seconds from the header of a weight transfer to its last byte.",
    ["service"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
LOAD_SECONDS = Histogram(
    "charter_weight_load_seconds",
    "Seconds to put received weights into service.",
    ["service"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
RECEIVED_BYTES = Counter("charter_weight_received_bytes_total", "Bytes of weights received.", ["service"])
FAILURES = Counter("charter_weight_transfer_failures_total", "Weight transfers refused or broken off.", ["service"])


class WeightTarget(Protocol):
    """What the weights are for: an engine, or the preference scorer."""

    def info(self) -> EngineInfo:
        """What is served now."""

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Serve a safetensors file; returns the seconds that nothing else ran.

        Raises ``WeightMismatchError`` and changes nothing when it does not fit.
        """


def model_info(info: EngineInfo) -> types_pb2.ModelInfo:
    """The wire form of what is served."""
    return types_pb2.ModelInfo(
        model=info.model,
        engine=info.engine,
        weight_version=info.weight_version,
        weight_digest=info.weight_digest,
        parameters=info.parameters,
        max_context_tokens=info.max_context_tokens,
    )


@dataclass(frozen=True, slots=True)
class Base:
    """Weights that adapters are for. The file has no name any more: it goes with the process, however that ends."""

    sha256: str
    file: BinaryIO


class WeightServicer(weights_pb2_grpc.WeightServiceServicer):
    """One transfer at a time into ``target``; files are staged in ``staging`` and removed afterwards.

    With ``readiness`` the service is NOT_SERVING while its first weights since it started are on their way.
    """

    def __init__(self, target: WeightTarget, staging: Path, service: str, readiness: Readiness | None = None) -> None:
        self._target = target
        self._readiness = readiness
        self._staging = staging
        self._service = service
        self._transfer = asyncio.Lock()
        self._base: Base | None = None
        VERSION.labels(service).set(0)
        for metric in (RECEIVED_BYTES, FAILURES, TRANSFER_SECONDS, LOAD_SECONDS):
            metric.labels(service)

    async def LoadWeights(
        self, request_iterator: AsyncIterator[weights_pb2.LoadWeightsRequest], context: grpc.aio.ServicerContext
    ) -> weights_pb2.LoadWeightsResponse:
        """Receive, check and serve one version."""
        if self._transfer.locked():
            raise StatusError(grpc.StatusCode.ABORTED, "another weight transfer is under way", retry_after_seconds=1)
        try:
            async with self._transfer:
                return await self._receive(request_iterator)
        except BaseException:
            FAILURES.labels(self._service).inc()
            raise

    async def _receive(
        self, requests: AsyncIterator[weights_pb2.LoadWeightsRequest]
    ) -> weights_pb2.LoadWeightsResponse:
        start = time.monotonic()
        header = await self._header(requests)
        served = self._target.info()
        same = (header.version, header.sha256) == (served.weight_version, served.weight_digest)
        if same and (header.sha256 == self._base_sha256 or not header.keep_as_base):
            # Sent again after a lost answer.
            return weights_pb2.LoadWeightsResponse(version=header.version)
        if header.version <= served.weight_version and not (header.force or same):
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"version {header.version} is not newer than the served version {served.weight_version}",
            )
        if header.base_sha256 != "" and header.base_sha256 != self._base_sha256:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the adapter is for weights with the digest {header.base_sha256}, those kept here have "
                f"{self._base_sha256 or 'none: none are kept'}; send its weights first, with keep_as_base",
            )
        # With nothing received since the start, what is served is not what it was asked to hold.
        first = self._readiness if served.weight_version == 0 else None
        async with first.held_back() if first is not None else nullcontext():
            return await self._replace(requests, header, start)

    async def _replace(
        self,
        requests: AsyncIterator[weights_pb2.LoadWeightsRequest],
        header: weights_pb2.WeightHeader,
        start: float,
    ) -> weights_pb2.LoadWeightsResponse:
        self._staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._staging) as folder:
            path = Path(folder) / "model.safetensors"
            await self._stage(requests, header, path)
            received = time.monotonic()
            try:
                if header.base_sha256 and self._base is not None:
                    merged = path.with_name("merged.safetensors")
                    await asyncio.to_thread(merge_adapter, self._base.file, path, merged)
                    paused = await self._target.load_weights(merged, header.version, header.sha256)
                else:
                    paused = await self._target.load_weights(path, header.version, header.sha256)
                    self._keep(header, path)
            except WeightMismatchError as error:
                raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        loaded = time.monotonic()
        VERSION.labels(self._service).set(header.version)
        TRANSFER_SECONDS.labels(self._service).observe(received - start)
        LOAD_SECONDS.labels(self._service).observe(loaded - received)
        return weights_pb2.LoadWeightsResponse(
            version=header.version,
            transfer_seconds=received - start,
            load_seconds=loaded - received,
            paused_seconds=paused,
        )

    @property
    def _base_sha256(self) -> str:
        return "" if self._base is None else self._base.sha256

    def _keep(self, header: weights_pb2.WeightHeader, path: Path) -> None:
        """Keep the file for adapters, if they will follow; those of other weights will not come any more."""
        if self._base is not None:
            self._base.file.close()
        self._base = Base(header.sha256, path.open("rb")) if header.keep_as_base else None

    async def _header(self, requests: AsyncIterator[weights_pb2.LoadWeightsRequest]) -> weights_pb2.WeightHeader:
        async for request in requests:
            if request.WhichOneof("part") == "header":
                return request.header
            break
        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a transfer must be its header")

    async def _stage(
        self,
        requests: AsyncIterator[weights_pb2.LoadWeightsRequest],
        header: weights_pb2.WeightHeader,
        path: Path,
    ) -> None:
        digest = hashlib.sha256()
        received = RECEIVED_BYTES.labels(self._service)
        size = 0
        try:
            with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1, thread_name_prefix="stage") as thread:

                def keep(chunk: bytes) -> None:
                    digest.update(chunk)
                    file.write(chunk)

                kept = asyncio.get_running_loop().run_in_executor(thread, keep, b"")
                async for request in requests:
                    if request.WhichOneof("part") != "chunk":
                        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "after the header only chunks may follow")
                    # Each look at the field copies it.
                    chunk = request.chunk
                    size += len(chunk)
                    if size > header.size:
                        raise StatusError(
                            grpc.StatusCode.DATA_LOSS, f"more than the {header.size} bytes of the header arrived"
                        )
                    # One chunk is digested and written while the next one arrives.
                    await kept
                    kept = asyncio.get_running_loop().run_in_executor(thread, keep, chunk)
                    received.inc(len(chunk))
                await kept
        except OSError as error:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"cannot stage {header.size} bytes in {self._staging}: {error}"
            ) from error
        if size != header.size:
            raise StatusError(grpc.StatusCode.DATA_LOSS, f"{size} of {header.size} bytes arrived")
        if digest.hexdigest() != header.sha256:
            raise StatusError(grpc.StatusCode.DATA_LOSS, "the sha256 of the received bytes differs from the header's")

    async def GetWeightVersion(
        self, request: weights_pb2.GetWeightVersionRequest, context: grpc.aio.ServicerContext
    ) -> weights_pb2.GetWeightVersionResponse:
        """The version that is served."""
        return weights_pb2.GetWeightVersionResponse(
            model=model_info(self._target.info()), base_sha256=self._base_sha256
        )

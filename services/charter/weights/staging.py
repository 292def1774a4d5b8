"""The file of weights on their way in: written and digested chunk by chunk, and read by other replicas meanwhile."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import grpc

from charter.rpc.channel import QUICK, connect_async
from charter.rpc.errors import StatusError
from charter.v1 import weights_pb2, weights_pb2_grpc

# Chunks of this size move fastest over gRPC: smaller ones cost more calls, larger ones fresh memory for each.
CHUNK_BYTES = 512 * 1024


class StagedWeights:
    """One safetensors file, open until ``close``; its name may go before."""

    def __init__(self, path: Path, size: int, sha256: str) -> None:
        self.path = path
        self.sha256 = sha256
        # Its digest was right, and the weights were put into service.
        self.served = False
        self._size = size
        self.file = path.open("w+b", buffering=0)
        self._written = 0
        self._broken = False
        self._changed = asyncio.Condition()

    def close(self) -> None:
        """Give the space back, once nobody reads any more."""
        self.file.close()

    async def fill(self, chunks: AsyncIterator[bytes], origin: str) -> None:
        """Write and digest the chunks, which ``origin`` gives. Raises ``StatusError`` if they are not as announced."""
        try:
            await self._fill(chunks, origin)
        except OSError as error:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"cannot stage {self._size} bytes in {self.path}: {error}"
            ) from error
        finally:
            async with self._changed:
                self._broken = self._written < self._size
                self._changed.notify_all()

    async def _fill(self, chunks: AsyncIterator[bytes], origin: str) -> None:
        digest = hashlib.sha256()
        loop = asyncio.get_running_loop()

        def keep(chunk: bytes) -> int:
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[self.file.write(rest) :]
            return len(chunk)

        size = 0
        with ThreadPoolExecutor(1, thread_name_prefix="stage") as thread:

            async def keep_and_tell(chunk: bytes) -> None:
                written = await loop.run_in_executor(thread, keep, chunk)
                async with self._changed:
                    self._written += written
                    self._changed.notify_all()

            kept = asyncio.create_task(keep_and_tell(b""))
            try:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._size:
                        raise StatusError(
                            grpc.StatusCode.DATA_LOSS,
                            f"more than the announced {self._size} bytes came from {origin}",
                        )
                    # One chunk is digested and written while the next one arrives.
                    await kept
                    kept = asyncio.create_task(keep_and_tell(chunk))
            finally:
                await kept
        if size != self._size:
            raise StatusError(grpc.StatusCode.DATA_LOSS, f"{size} of {self._size} bytes came from {origin}")
        if digest.hexdigest() != self.sha256:
            raise StatusError(
                grpc.StatusCode.DATA_LOSS,
                f"the sha256 of the bytes from {origin} is not the header's: they were changed",
            )

    async def read(self) -> AsyncGenerator[bytes, None]:
        """All bytes, as they come in. Raises ``StatusError`` when no more will come; the reader checks the digest."""
        descriptor = os.dup(self.file.fileno())
        try:
            at = 0
            while at < self._size:
                async with self._changed:
                    await self._changed.wait_for(lambda at=at: self._broken or self._written > at)  # type: ignore[misc]
                if self._written <= at:
                    raise StatusError(grpc.StatusCode.UNAVAILABLE, f"only {at} of {self._size} bytes have come here")
                chunk = await asyncio.to_thread(os.pread, descriptor, min(CHUNK_BYTES, self._written - at), at)
                at += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)


async def chunks_of_call(requests: AsyncIterator[weights_pb2.LoadWeightsRequest]) -> AsyncGenerator[bytes, None]:
    """What follows the header in the call itself."""
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "after the header only chunks may follow")
        yield request.chunk


async def chunks_of_file(path: str) -> AsyncGenerator[bytes, None]:
    """A file in a shared folder. It is copied, so that what was digested is what is loaded."""
    try:
        with await asyncio.to_thread(Path(path).open, "rb", buffering=0) as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
    except FileNotFoundError as error:
        raise StatusError(
            grpc.StatusCode.NOT_FOUND,
            f"there is no {path} here: services.weights_folder must be a folder that this service and the worker share "
            "by the same path; without it weights travel over gRPC",
        ) from error
    except OSError as error:
        raise StatusError(grpc.StatusCode.UNAVAILABLE, f"cannot read the weights: {error}") from error


async def chunks_of_peer(address: str, sha256: str) -> AsyncGenerator[bytes, None]:
    """What another replica has, or gets at the moment. One that gives nothing for a while counts as dead."""
    try:
        async with connect_async(address) as channel:
            stub = weights_pb2_grpc.WeightServiceStub(channel)
            responses = aiter(stub.ReadWeights(weights_pb2.ReadWeightsRequest(sha256=sha256)))
            while True:
                async with asyncio.timeout(2 * QUICK):
                    response = await anext(responses, None)
                if response is None:
                    return
                yield response.chunk
    except (grpc.aio.AioRpcError, TimeoutError) as error:
        reason = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else "it hangs"
        raise StatusError(
            grpc.StatusCode.UNAVAILABLE, f"cannot get the weights from the replica at {address}: {reason}"
        ) from error


async def stage(
    staged: StagedWeights,
    header: weights_pb2.WeightHeader,
    requests: AsyncIterator[weights_pb2.LoadWeightsRequest],
) -> None:
    """Fill the file from where the header says. Raises ``StatusError``."""
    match header.WhichOneof("source"):
        case "peer":
            chunks, origin = chunks_of_peer(header.peer, header.sha256), f"the replica at {header.peer}"
        case "path":
            chunks, origin = chunks_of_file(header.path), f"the file {header.path}"
        case _:
            chunks, origin = chunks_of_call(requests), "the sender"
    async with aclosing(chunks):
        await staged.fill(chunks, origin)

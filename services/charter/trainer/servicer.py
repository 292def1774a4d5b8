"""The trainer's two gRPC services: runs for people, reports for workers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from charter.rpc.errors import StatusError
from charter.trainer.artifact_files import artifacts_of, read_artifact
from charter.trainer.runs import RunStore, to_proto
from charter.trainer.supervisor import Supervisor
from charter.v1 import trainer_pb2, trainer_pb2_grpc

DEFAULT_PAGE = 50

Context = grpc.aio.ServicerContext


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """``TrainerService``, on the main port."""

    def __init__(self, store: RunStore, supervisor: Supervisor) -> None:
        self._store = store
        self._supervisor = supervisor

    async def CreateRun(self, request: trainer_pb2.CreateRunRequest, context: Context) -> trainer_pb2.CreateRunResponse:
        """Create a run and start its worker."""
        row = await self._supervisor.create(request.request_id, request.spec, request.files)
        return trainer_pb2.CreateRunResponse(run=to_proto(row))

    async def GetRun(self, request: trainer_pb2.GetRunRequest, context: Context) -> trainer_pb2.GetRunResponse:
        """One run by id, or the newest by name."""
        row = await asyncio.to_thread(self._store.find, request.run_id)
        return trainer_pb2.GetRunResponse(run=to_proto(row))

    async def ListRuns(self, request: trainer_pb2.ListRunsRequest, context: Context) -> trainer_pb2.ListRunsResponse:
        """Runs, newest first. A page token is the number of the last run of the page before."""
        if request.page_token and not request.page_token.isdecimal():
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "page_token: not a token of this service")
        size = request.page_size if request.HasField("page_size") else DEFAULT_PAGE
        before = int(request.page_token) if request.page_token else None
        # One more than asked tells whether there is another page.
        rows = await asyncio.to_thread(self._store.page, size + 1, before)
        token = str(rows[size - 1].number) if len(rows) > size else ""
        return trainer_pb2.ListRunsResponse(runs=[to_proto(row) for row in rows[:size]], next_page_token=token)

    async def WatchRun(
        self, request: trainer_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.WatchRunResponse]:
        """Stored events, then live ones."""
        async for response in self._supervisor.watch(request.run_id, request.after_sequence):
            yield response

    async def WatchRevisions(
        self, request: trainer_pb2.WatchRevisionsRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.WatchRevisionsResponse]:
        """Stored rows, then new ones."""
        async for response in self._supervisor.watch_revisions(request.run_id, request.after_row):
            yield response

    async def CancelRun(self, request: trainer_pb2.CancelRunRequest, context: Context) -> trainer_pb2.CancelRunResponse:
        """Stop a run's worker."""
        return trainer_pb2.CancelRunResponse(run=to_proto(await self._supervisor.cancel(request.run_id)))

    async def ResumeRun(self, request: trainer_pb2.ResumeRunRequest, context: Context) -> trainer_pb2.ResumeRunResponse:
        """Start a run's worker again, by a corrected spec if one is given."""
        spec = request.spec if request.HasField("spec") else None
        row = await self._supervisor.resume(request.run_id, spec, request.files)
        return trainer_pb2.ResumeRunResponse(run=to_proto(row))

    async def ListArtifacts(
        self, request: trainer_pb2.ListArtifactsRequest, context: Context
    ) -> trainer_pb2.ListArtifactsResponse:
        """Files of a run's folder."""
        row = await asyncio.to_thread(self._store.find, request.run_id)
        found = await asyncio.to_thread(artifacts_of, Path(row.artifacts))
        return trainer_pb2.ListArtifactsResponse(artifacts=found)

    async def ReadArtifact(
        self, request: trainer_pb2.ReadArtifactRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.ReadArtifactResponse]:
        """One file from an offset on."""
        row = await asyncio.to_thread(self._store.find, request.run_id)
        chunks = read_artifact(Path(row.artifacts), request.path, request.offset)
        while (chunk := await asyncio.to_thread(next, chunks, b"")) != b"":
            yield trainer_pb2.ReadArtifactResponse(content=chunk)


class RunReportServicer(trainer_pb2_grpc.RunReportServiceServicer):
    """``RunReportService``, on the control port."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def ReportEvents(
        self, request: trainer_pb2.ReportEventsRequest, context: Context
    ) -> trainer_pb2.ReportEventsResponse:
        """Store a worker's events and tell it whether to stop."""
        stop = await self._supervisor.report(request.run_id, request.attempt, request.events)
        return trainer_pb2.ReportEventsResponse(cancel_requested=stop)

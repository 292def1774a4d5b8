"""Runs and their workers: starts them, hears their reports, notices their end."""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path

import grpc

from charter.rpc.errors import StatusError, invalid_fields
from charter.rpc.validation import Violation
from charter.runs.artifacts import has_checkpoint
from charter.runs.corrections import conflicts
from charter.spec.checks import problems
from charter.spec.defaults import fill_defaults, with_addresses
from charter.spec.load import spec_from_json
from charter.trainer import metrics
from charter.trainer.artifact_files import with_stored_files
from charter.trainer.launcher import Launcher, WorkerExit, WorkerOrder
from charter.trainer.revisions import RevisionReader
from charter.trainer.runs import MOST_EVENTS_READ, RunStateError, RunStore, State, to_proto
from charter.trainer.tables import RunRow
from charter.v1 import run_pb2, trainer_pb2

logger = logging.getLogger("charter.trainer")

# States in which a run can be resumed.
RESUMABLE = (State.FAILED, State.CANCELLED)
# After a cancel the worker has this long to stop by itself, then this long after SIGTERM, then it is killed.
COOPERATE_SECONDS = 10.0
TERMINATE_SECONDS = 30.0
# What a watch is told that the trainer ends; its client comes back with the last sequence that it saw.
TRAINER_STOPS = "the trainer stops; watch again when it is back"


class Supervisor:
    """Owns the store and the launcher.

    ``control_address`` is where workers report, host:port; ``services`` are the addresses for specs that name none.
    """

    def __init__(
        self,
        store: RunStore,
        launcher: Launcher,
        artifacts: Path,
        control_address: str,
        services: run_pb2.ServiceAddresses,
    ) -> None:
        self.control_address = control_address
        self._services = services
        self._store = store
        self._launcher = launcher
        self._artifacts = artifacts
        self._tasks: set[asyncio.Task[None]] = set()
        # Set, and replaced, whenever a run changes; it lives as long as somebody waits for it.
        self._changed: weakref.WeakValueDictionary[str, asyncio.Event] = weakref.WeakValueDictionary()
        self._draining = False

    async def recover(self) -> None:
        """Watch the workers that an earlier trainer left; runs whose worker is gone become FAILED."""
        for row in await asyncio.to_thread(self._store.active):
            logger.info("recovering", extra={"run": row.id, "attempt": row.attempts})
            if not row.worker and (found := self._launcher.find(self._order(row))):
                # The trainer died between starting it and remembering it.
                row.worker = found
                await asyncio.to_thread(self._store.set_worker, row.id, found)
            self._background(self._watch_worker(row, row.worker))
            if row.cancel_requested:
                self._background(self._stop_worker(row))
        await self._show_runs()

    async def close(self) -> None:
        """Stop watching. Workers live on; the next trainer finds them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def create(
        self, request_id: str, spec: run_pb2.RunSpec, files: Sequence[trainer_pb2.InputFile] = ()
    ) -> RunRow:
        """Store a run with the client's files and start its worker.

        Raises ``StatusError`` that names every mistake in the spec, ``RunStateError``.
        """
        if known := await asyncio.to_thread(self._store.made_by, request_id):
            return known
        filled = await asyncio.to_thread(self._checked, spec, files)
        row, new = await asyncio.to_thread(self._store.create, request_id, filled)
        if new:
            row = await self._start_worker(row, (State.PENDING,))
        return row

    async def resume(
        self, run: str, spec: run_pb2.RunSpec | None = None, files: Sequence[trainer_pb2.InputFile] = ()
    ) -> RunRow:
        """Start a failed or cancelled run's worker again, by a corrected spec if there is one.

        Raises ``UnknownRunError``, ``RunStateError``, ``StatusError`` that names every mistake in the spec.
        """
        row = await asyncio.to_thread(self._store.find, run)
        if spec is not None:
            row = await asyncio.to_thread(self._correct, row, spec, files)
        return await self._start_worker(row, RESUMABLE)

    async def cancel(self, run: str) -> RunRow:
        """Ask a run's worker to stop; end it when it does not. Raises ``UnknownRunError``, ``RunStateError``."""
        row = await asyncio.to_thread(self._store.request_cancel, run)
        if State(row.state).active:
            self._background(self._stop_worker(row))
        return row

    async def report(self, run_id: str, attempt: int, events: Sequence[run_pb2.RunEvent]) -> bool:
        """Store a worker's events; True when it should stop. Raises ``UnknownRunError``, ``StaleReportError``."""
        row = await asyncio.to_thread(self._store.add_events, run_id, attempt, events)
        for event in events:
            metrics.show_event(row.id, event)
        self._notify(row.id)
        return row.cancel_requested

    async def watch(self, run: str, after_sequence: int) -> AsyncIterator[trainer_pb2.WatchRunResponse]:
        """Stored events, then new ones as they come, until the run has ended.

        Raises ``UnknownRunError``, and ``StatusError`` with UNAVAILABLE when the trainer stops.
        """
        run_id = (await asyncio.to_thread(self._store.find, run)).id
        shown: tuple[str, int] | None = None
        while True:
            # In this order nothing is missed: a change after the reads sets the event, and no event of a run
            # comes after its end.
            changed = self._changed.setdefault(run_id, asyncio.Event())
            row = await asyncio.to_thread(self._store.find, run_id)
            events = await asyncio.to_thread(self._store.events, run_id, after_sequence)
            for event in events:
                yield trainer_pb2.WatchRunResponse(event=event)
                after_sequence = event.sequence
            if len(events) == MOST_EVENTS_READ:
                continue
            if (row.state, row.attempts) != shown:
                shown = (row.state, row.attempts)
                yield trainer_pb2.WatchRunResponse(run=to_proto(row))
            if not State(row.state).active:
                return
            if self._draining:
                raise StatusError(grpc.StatusCode.UNAVAILABLE, TRAINER_STOPS)
            await changed.wait()

    async def watch_revisions(self, run: str, after_row: int) -> AsyncIterator[trainer_pb2.WatchRevisionsResponse]:
        """Stored rows of critique and revision, then new ones, until the run has ended. Raises as ``watch``."""
        found = await asyncio.to_thread(self._store.find, run)
        reader = RevisionReader(Path(found.artifacts), after_row)
        while True:
            # A row is written before it is reported, and no row of a run comes after its end.
            changed = self._changed.setdefault(found.id, asyncio.Event())
            row = await asyncio.to_thread(self._store.find, found.id)
            while responses := await asyncio.to_thread(reader.read):
                for response in responses:
                    yield response
            if not State(row.state).active:
                return
            if self._draining:
                raise StatusError(grpc.StatusCode.UNAVAILABLE, TRAINER_STOPS)
            await changed.wait()

    def end_watches(self) -> None:
        """End every watch when it has shown what is stored, those that begin later too."""
        self._draining = True
        for changed in list(self._changed.values()):
            changed.set()

    def _checked(self, spec: run_pb2.RunSpec, files: Sequence[trainer_pb2.InputFile]) -> run_pb2.RunSpec:
        """The spec with the client's files stored and every default filled in. Raises ``StatusError``."""
        stored = with_stored_files(spec, files, self._artifacts)
        filled = fill_defaults(with_addresses(stored, self._services))
        if found := problems(filled, absent_files=not self._launcher.shares_files):
            raise invalid_fields([Violation(f"spec.{one.field}", one.text) for one in found])
        return filled

    def _correct(self, row: RunRow, spec: run_pb2.RunSpec, files: Sequence[trainer_pb2.InputFile]) -> RunRow:
        """Store another spec for a run that has ended. Raises ``RunStateError``, ``StatusError``."""
        corrected = self._checked(spec, files)
        if found := conflicts(Path(row.artifacts), spec_from_json(row.spec), corrected):
            raise RunStateError(
                f"the spec of run {row.id} cannot be changed any more: {'; '.join(found)}. Resume it as it is, or "
                "start a new run"
            )
        return self._store.replace_spec(row.id, corrected, RESUMABLE)

    async def _start_worker(self, row: RunRow, allowed: Sequence[State]) -> RunRow:
        row = await asyncio.to_thread(self._store.begin_attempt, row.id, allowed)
        order = self._order(row)
        try:
            await asyncio.to_thread(_write_spec, row)
            worker = await self._launcher.start(order)
        except OSError as error:
            await self._end(row, State.FAILED, f"the worker could not be started: {error}")
            return await asyncio.to_thread(self._store.find, row.id)
        await asyncio.to_thread(self._store.set_worker, row.id, worker)
        logger.info("worker started", extra={"run": row.id, "attempt": row.attempts, "worker": worker})
        self._background(self._watch_worker(row, worker))
        await self._show_runs()
        self._notify(row.id)
        return row

    def _order(self, row: RunRow) -> WorkerOrder:
        return WorkerOrder(row.id, row.attempts, Path(row.artifacts), self.control_address)

    async def _watch_worker(self, row: RunRow, worker: str) -> None:
        metrics.show_worker(row.id)
        ended = await self._launcher.wait(worker, Path(row.artifacts))
        row = await asyncio.to_thread(self._store.find, row.id)
        state, error = _outcome(row, ended)
        await self._end(row, state, error)

    async def _end(self, row: RunRow, state: State, error: str) -> None:
        if await asyncio.to_thread(self._store.end, row.id, row.attempts, state, error):
            logger.info("run ended", extra={"run": row.id, "attempt": row.attempts, "state": state, "error": error})
            metrics.remove_run(row.id)
            await self._show_runs()
            self._notify(row.id)

    async def _stop_worker(self, row: RunRow) -> None:
        for seconds, force in ((COOPERATE_SECONDS, False), (TERMINATE_SECONDS, True)):
            await asyncio.sleep(seconds)
            now = await asyncio.to_thread(self._store.find, row.id)
            if not State(now.state).active or now.attempts != row.attempts:
                return
            logger.warning("stopping the worker", extra={"run": row.id, "attempt": row.attempts, "force": force})
            await self._launcher.stop(now.worker, force)

    async def _show_runs(self) -> None:
        metrics.show_runs(await asyncio.to_thread(self._store.count_by_state))

    def _notify(self, run_id: str) -> None:
        if (changed := self._changed.pop(run_id, None)) is not None:
            changed.set()

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("watching a run failed; a restart of the trainer takes it up again", exc_info=error)


def _write_spec(row: RunRow) -> None:
    """Make the run's folder with the stored spec, which the worker reads there."""
    folder = Path(row.artifacts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(row.spec, encoding="utf-8")


def _outcome(row: RunRow, ended: WorkerExit) -> tuple[State, str]:
    """State of a run whose worker has ended, and the error when it failed.

    A worker has finished when its last event is of the last phase with all work done; its exit status may be unknown.
    """
    last = run_pb2.RunEvent.FromString(row.last_event)
    finished = last.phase == run_pb2.PHASE_REPORTING and 0 < last.total <= last.done
    if finished and ended.status in (0, None):
        return State.SUCCEEDED, ""
    if row.cancel_requested:
        return State.CANCELLED, ""
    goes_on = (
        "continues from the newest checkpoint"
        if has_checkpoint(Path(row.artifacts))
        else "does again what was not finished, and with `--spec FILE` by a corrected spec"
    )
    why = ended.stated or f"the worker did not finish the run: {ended.reason}"
    between = "\n" if "\n" in why else " "
    return State.FAILED, f"{why.rstrip('. ')}.{between}`charter runs resume {row.id}` {goes_on}"

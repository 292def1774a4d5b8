"""The store of runs and their events. Its methods block: call them off the event loop."""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import grpc
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from charter.rpc.errors import StatusError
from charter.spec.facts import needs_reinforcement
from charter.spec.load import spec_from_json, spec_to_json
from charter.trainer.artifact_files import with_absolute_files, with_relative_files
from charter.trainer.tables import EventRow, RunRow
from charter.v1 import run_pb2

MOST_EVENTS_READ = 500


class State(StrEnum):
    """``charter.v1.RunState`` as it is stored."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def active(self) -> bool:
        """A worker belongs to the run, or soon will."""
        return self in (State.PENDING, State.RUNNING)


class UnknownRunError(StatusError):
    """No run has this id or name."""

    def __init__(self, run: str) -> None:
        super().__init__(grpc.StatusCode.NOT_FOUND, f"there is no run `{run}`; `charter runs list` shows all")


class StaleReportError(StatusError):
    """A report comes from a worker that is not the run's current one."""

    def __init__(self, row: RunRow, attempt: int) -> None:
        super().__init__(
            grpc.StatusCode.ABORTED,
            f"attempt {attempt} of run {row.id} may not report: the run is {row.state}, attempt {row.attempts}",
        )


class RunStateError(StatusError):
    """A run is not in a state that allows what was asked."""

    def __init__(self, message: str) -> None:
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION, message)


class RunStore:
    """Runs in a SQL database. Every method is one transaction and may be called from any thread.

    ``artifacts`` is the folder of the runs' folders. What is stored names files in it by their place there, so that
    database and folder may be moved together; the rows that are returned name them in full.
    """

    def __init__(self, database: sa.Engine, artifacts: Path) -> None:
        self._sessions = sessionmaker(database, expire_on_commit=False)
        self._artifacts = artifacts
        self._lock = threading.Lock()

    def adopt(self) -> None:
        """Rows used to name their folder in full: name those that lie here by their place here."""
        with self._session() as session:
            for row in session.scalars(sa.select(RunRow).where(RunRow.artifacts.startswith("/"))):
                if (self._artifacts / row.id).is_dir():
                    row.artifacts = row.id
                    row.spec = self._stored(spec_from_json(row.spec))

    def create(self, request_id: str, spec: run_pb2.RunSpec) -> tuple[RunRow, bool]:
        """Store a PENDING run; its artifacts go into a folder of its id.

        A request id that was seen before gives its run and False.
        Raises ``RunStateError`` when an active run uses the same policy service: both would overwrite its weights.
        """
        with self._session() as session:
            if known := session.scalar(sa.select(RunRow).where(RunRow.request_id == request_id)):
                return known, False
            _refuse_shared_policy(session, spec)
            now = datetime.now(UTC)
            run_id = f"{spec.name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            row = RunRow(
                id=run_id,
                name=spec.name,
                request_id=request_id,
                spec=self._stored(spec),
                state=State.PENDING,
                create_time=now,
                artifacts=run_id,
            )
            session.add(row)
            return row, True

    def made_by(self, request_id: str) -> RunRow | None:
        """The run that an earlier request with this id created."""
        with self._session() as session:
            return session.scalar(sa.select(RunRow).where(RunRow.request_id == request_id))

    def replace_spec(self, run_id: str, spec: run_pb2.RunSpec, allowed: Sequence[State]) -> RunRow:
        """Give a run another spec. Raises ``RunStateError`` when its state is not in ``allowed``."""
        with self._session() as session:
            row = _in_state(session, run_id, allowed)
            row.spec = self._stored(spec)
            return row

    def find(self, run: str) -> RunRow:
        """Run with this id, or the newest with this name. Raises ``UnknownRunError``."""
        with self._session() as session:
            return _find(session, run)

    def page(self, limit: int, before: int | None = None) -> Sequence[RunRow]:
        """Runs, newest first; ``before`` is the number of the last run of the page before."""
        query = sa.select(RunRow).order_by(RunRow.number.desc()).limit(limit)
        if before is not None:
            query = query.where(RunRow.number < before)
        with self._session() as session:
            return session.scalars(query).all()

    def active(self) -> Sequence[RunRow]:
        """Runs that have a worker, or should have."""
        with self._session() as session:
            return session.scalars(sa.select(RunRow).where(RunRow.state.in_((State.PENDING, State.RUNNING)))).all()

    def count_by_state(self) -> dict[State, int]:
        """How many runs are in each state, states without runs included."""
        with self._session() as session:
            counted = session.execute(sa.select(RunRow.state, sa.func.count()).group_by(RunRow.state))
            return dict.fromkeys(State, 0) | {State(state): count for state, count in counted}

    def begin_attempt(self, run_id: str, allowed: Sequence[State]) -> RunRow:
        """Make the run RUNNING with one more attempt. Raises ``RunStateError`` when its state is not in ``allowed``."""
        with self._session() as session:
            row = _in_state(session, run_id, allowed)
            if row.state != State.PENDING:
                _refuse_shared_policy(session, spec_from_json(row.spec))
            row.state = State.RUNNING
            row.attempts += 1
            row.start_time = row.start_time or datetime.now(UTC)
            row.end_time = None
            row.error = ""
            row.cancel_requested = False
            row.worker = ""
            return row

    def set_worker(self, run_id: str, worker: str) -> None:
        """Remember where the current worker is."""
        with self._session() as session:
            _find(session, run_id, lock=True).worker = worker

    def request_cancel(self, run: str) -> RunRow:
        """Ask the worker to stop. Raises ``RunStateError`` when the run has succeeded or failed already."""
        with self._session() as session:
            row = _find(session, run, lock=True)
            if row.state in (State.SUCCEEDED, State.FAILED):
                raise RunStateError(f"run {row.id} has ended already: it is {row.state}")
            row.cancel_requested = True
            return row

    def end(self, run_id: str, attempt: int, state: State, error: str = "") -> RunRow | None:
        """End an attempt. None when the run has ended already or a newer attempt has begun."""
        with self._session() as session:
            row = _find(session, run_id, lock=True)
            if not State(row.state).active or row.attempts != attempt:
                return None
            row.state, row.error, row.end_time, row.worker = state, error, datetime.now(UTC), ""
            return row

    def add_events(self, run_id: str, attempt: int, events: Sequence[run_pb2.RunEvent]) -> RunRow:
        """Store events; a sequence that is stored already is ignored.

        Raises ``UnknownRunError``, ``StaleReportError`` when the attempt is not the running one.
        """
        with self._session() as session:
            row = _find(session, run_id, lock=True)
            if row.attempts != attempt or row.state != State.RUNNING:
                raise StaleReportError(row, attempt)
            by_sequence = {event.sequence: event for event in events}
            stored = session.scalars(
                sa.select(EventRow.sequence).where(
                    EventRow.run_number == row.number, EventRow.sequence.in_(by_sequence)
                )
            )
            for sequence in stored:
                del by_sequence[sequence]
            session.add_all(
                EventRow(run_number=row.number, sequence=sequence, event=event.SerializeToString())
                for sequence, event in by_sequence.items()
            )
            newest = max(by_sequence, default=0)
            if newest > run_pb2.RunEvent.FromString(row.last_event).sequence:
                row.last_event = by_sequence[newest].SerializeToString()
            return row

    def events(self, run_id: str, after_sequence: int) -> list[run_pb2.RunEvent]:
        """Events behind ``after_sequence`` in order, at most ``MOST_EVENTS_READ``."""
        with self._session() as session:
            query = (
                sa.select(EventRow.event)
                .join(RunRow, RunRow.number == EventRow.run_number)
                .where(RunRow.id == run_id, EventRow.sequence > after_sequence)
                .order_by(EventRow.sequence)
                .limit(MOST_EVENTS_READ)
            )
            return [run_pb2.RunEvent.FromString(event) for event in session.scalars(query)]

    @contextmanager
    def _session(self) -> Iterator[Session]:
        # SQLite has no row locks; the trainer is one process, so its own lock does.
        with self._lock, self._sessions.begin() as session:
            yield session
            rows = [one for one in session if isinstance(one, RunRow)]
        # These are not the session's any more: nothing of this is stored.
        for row in rows:
            row.artifacts = str(self._artifacts / row.artifacts)
            row.spec = spec_to_json(with_absolute_files(spec_from_json(row.spec), self._artifacts))

    def _stored(self, spec: run_pb2.RunSpec) -> str:
        return spec_to_json(with_relative_files(spec, self._artifacts))


def to_proto(row: RunRow) -> run_pb2.Run:
    """The run as clients see it."""
    run = run_pb2.Run(
        id=row.id,
        spec=spec_from_json(row.spec),
        state=run_pb2.RunState.Value(f"RUN_STATE_{row.state}"),
        error=row.error,
        artifacts=row.artifacts,
        attempts=row.attempts,
    )
    for name in ("create_time", "start_time", "end_time"):
        if (time := getattr(row, name)) is not None:
            getattr(run, name).FromDatetime(time)
    if row.last_event:
        run.last_event.ParseFromString(row.last_event)
    return run


def _find(session: Session, run: str, lock: bool = False) -> RunRow:
    query = (
        sa.select(RunRow)
        .where(sa.or_(RunRow.id == run, RunRow.name == run))
        # An exact id comes before a name.
        .order_by(sa.case((RunRow.id == run, 0), else_=1), RunRow.number.desc())
        .limit(1)
    )
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise UnknownRunError(run)
    return row


def _in_state(session: Session, run_id: str, allowed: Sequence[State]) -> RunRow:
    row = _find(session, run_id, lock=True)
    if row.state not in allowed:
        raise RunStateError(f"run {row.id} is {row.state}, not {' or '.join(allowed)}")
    return row


def _policies_of(spec: run_pb2.RunSpec) -> set[str]:
    """The policy services that a run sends weights to: none where it only learns from files."""
    return set(spec.services.policy) if needs_reinforcement(spec) else set()


def _refuse_shared_policy(session: Session, spec: run_pb2.RunSpec) -> None:
    active = sa.select(RunRow).where(RunRow.state.in_((State.PENDING, State.RUNNING)))
    used = _policies_of(spec)
    for other in session.scalars(active):
        shared = _policies_of(spec_from_json(other.spec)) & used
        if shared:
            raise RunStateError(
                f"run {other.id} is {other.state} on the policy service at {', '.join(sorted(shared))}; two runs would "
                f"overwrite each other's weights. Wait for it, or `charter runs cancel {other.id}`"
            )

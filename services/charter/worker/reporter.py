"""Tells the trainer service and ``events.jsonl`` how the run goes, and hears that it should stop."""

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

import grpc
from google.protobuf import json_format

from charter.jsonl import append_line
from charter.rpc.channel import QUICK, connect
from charter.rpc.errors import ServiceError, explained
from charter.runs.artifacts import Artifacts
from charter.state_files import read_log
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc
from charter.worker import metrics
from charter.worker.errors import Cancelled, NotFiniteError, Superseded
from charter.worker.sinks.base import Ending, Sink

logger = logging.getLogger("charter.worker")

# Most events in one call (the contract's limit).
_AT_ONCE = 1000
# How long the last events wait for a trainer that is away.
_PATIENCE_SECONDS = 60.0


class Reporter:
    """Numbers the events of a run and delivers them in order.

    With an empty ``trainer`` address events go to the file alone. A trainer that cannot be reached does not stop the
    run: its events wait and are delivered with a later one.

    Raises ``StateFileError`` when the file is damaged.
    """

    def __init__(self, artifacts: Artifacts, run_id: str, attempt: int, trainer: str) -> None:
        self._artifacts = artifacts
        self.run_id = run_id
        self._attempt = attempt
        self._address = trainer
        self._channel = connect(trainer) if trainer else None
        # Those of the spec; they get the numbers of every event.
        self.sinks: Sequence[Sink] = ()
        # Answers are sampled on another thread, which may have to say that it waits for replicas.
        self._lock = threading.Lock()
        self._stop_requested = False
        # Whether it was a signal that asked.
        self.terminated = False
        self.phase: run_pb2.Phase.ValueType = run_pb2.PHASE_STARTING
        self._inside = False
        earlier = read_log(artifacts.events, _event, "Delete the lines that are not whole, and resume the run")
        self._sequence = earlier[-1].sequence if earlier else 0
        # What an attempt that died wrote to the file may never have reached the trainer; it ignores repeated ones.
        self._waiting = earlier

    @property
    def stop_requested(self) -> bool:
        """Whether the trainer or a signal asked the worker to stop."""
        return self._stop_requested

    def stop_on_signals(self) -> None:
        """Take SIGTERM and SIGINT as a request to stop; a second one ends the process as usual."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def stop(self) -> None:
        """Take note that a signal asks the worker to stop."""
        self._stop_requested = self.terminated = True

    def raise_if_stopped(self) -> None:
        """Raise ``Cancelled`` when the worker was asked to stop."""
        if self._stop_requested:
            raise Cancelled

    @contextmanager
    def in_phase(self, phase: "run_pb2.Phase.ValueType") -> Iterator[None]:
        """Name the phase of the events inside the block and add its time to ``run.json``.

        A phase inside another has its time for itself, and the outer one goes on after it.
        """
        outer, self._inside = (self.phase if self._inside else None), True
        self.phase = phase
        start = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - start
            self._artifacts.add_seconds(metrics.phase_name(phase), took)
            metrics.PHASE_SECONDS.labels(self.run_id, metrics.phase_name(phase)).inc(took)
            self._inside = outer is not None
            if outer is not None:
                self._artifacts.add_seconds(metrics.phase_name(outer), -took)
                self.phase = outer

    def report(
        self,
        done: int,
        total: int,
        *,
        step: int | None = None,
        numbers: Mapping[str, float] | None = None,
        text: str = "",
    ) -> None:
        """Report progress in the present phase, from any thread.

        Raises ``Superseded`` when a newer worker has taken over, ``RunFolderGoneError`` when there is nothing left to
        go on in, ``NotFiniteError`` for a number that is not finite,
        ``ServiceError`` when the trainer refuses the report.
        """
        numbers = numbers or {}
        if broken := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise NotFiniteError(f"{', '.join(broken)} is not a finite number: the run has diverged")
        with self._lock:
            self._sequence += 1
            event = run_pb2.RunEvent(
                sequence=self._sequence, phase=self.phase, done=done, total=total, step=step, metrics=numbers, text=text
            )
            event.time.GetCurrentTime()
            line = json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None, ensure_ascii=False)
            self._artifacts.require_folder()
            append_line(self._artifacts.events, line)
            metrics.show(self.run_id, event)
            if numbers:
                for sink in self.sinks:
                    sink.write(event)
            logger.info(
                text or "progress", extra={"phase": metrics.phase_name(self.phase), "done": done, "total": total}
            )
            self._waiting.append(event)
            self._deliver()

    def __enter__(self) -> "Reporter":
        """Nothing is opened anew: the block's end closes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close by how the block ended."""
        stopped = isinstance(error, (Cancelled, Superseded))
        self.close(Ending.FINISHED if error is None else Ending.STOPPED if stopped else Ending.FAILED)

    def close(self, ending: Ending = Ending.FINISHED) -> None:
        """Close the sinks and, when what waits is delivered or a trainer had time to restart, the channel to it."""
        for sink in self.sinks:
            sink.close(ending)
        if self._channel is None:
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with self._channel:
            while self._waiting and (left := deadline - time.monotonic()) > 0:
                self._deliver(patience=left)
        if self._waiting:
            logger.error("events were not delivered", extra={"events": len(self._waiting), "trainer": self._address})

    def _deliver(self, patience: float = 0.0) -> None:
        """Send what waits. With ``patience`` (seconds) wait for a trainer that is away, without it try once."""
        if self._channel is None:
            return
        stub = trainer_pb2_grpc.RunReportServiceStub(self._channel)
        while self._waiting:
            events = self._waiting[:_AT_ONCE]
            request = trainer_pb2.ReportEventsRequest(run_id=self.run_id, attempt=self._attempt, events=events)
            try:
                with explained("trainer", self._address):
                    response = stub.ReportEvents(request, timeout=patience or QUICK, wait_for_ready=patience > 0)
            except ServiceError as error:
                if error.code == grpc.StatusCode.ABORTED:
                    self._waiting = []
                    raise Superseded(error.details) from error
                if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                logger.warning("events wait", extra={"events": len(self._waiting), "reason": str(error)})
                return
            self._waiting = self._waiting[len(events) :]
            self._stop_requested |= response.cancel_requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        logger.warning("stopping after the current operation", extra={"signal": signal.Signals(number).name})
        self.stop()
        signal.signal(number, signal.SIG_DFL)


def _event(line: str) -> run_pb2.RunEvent:
    try:
        return json_format.Parse(line, run_pb2.RunEvent())
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error

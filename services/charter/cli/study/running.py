"""Carries out the runs of a study at the trainer: as many at a time as there are slots, each resumed where it was."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc

from charter.cli import checks
from charter.cli.calls import channel_to
from charter.cli.runs.progress import ACTIVE, watch
from charter.cli.services import gpu_sharing, service_addresses
from charter.cli.study.policies import take_out
from charter.cli.study.progress import RunsProgress
from charter.rpc.channel import QUICK
from charter.rpc.errors import ServiceError
from charter.study.estimate import seconds_of
from charter.study.folder import StudyFolder, StudyRun
from charter.study.points import points_of, steps_of
from charter.study.runs import Key, next_run, policy_of, run_spec, slots_of
from charter.study.spec import CheckedStudy, started_from
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc
from charter.worker.errors import RunError

_RESUMABLE = (run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED)


def check_services(study: CheckedStudy) -> None:
    """Look for all that the runs will ask, before anything is labelled. Raises ``RunError``, ``ServiceError``."""
    services, seed = service_addresses(gpu_sharing()), study.spec.seeds[0]
    specs = (run_spec(study, arm, seed, "", slot, services) for slot in slots_of(study.spec, {}) for arm in study.arms)
    _refuse(study, list(dict.fromkeys(problem for spec in specs for problem in checks.problems(spec))))


class StudyRuns:
    """The runs of a study that have not succeeded, each tried once.

    ``may_begin`` says of an arm why no run of it begins any more, for want of time; empty when one may.
    """

    def __init__(
        self, study: CheckedStudy, folder: StudyFolder, progress: RunsProgress, may_begin: Callable[[str], str]
    ) -> None:
        self._study, self._folder, self._progress, self._may_begin = study, folder, progress, may_begin
        self._services = service_addresses(gpu_sharing())
        self._steps = steps_of(study.arms)
        # Guards the files of the study and what follows, and tells that a run has ended.
        self._changed = threading.Condition()
        self._under_way: set[Key] = set()
        # Those that this command does not try, or not again.
        self._over: set[Key] = set()
        self._stopping = False
        # Ids of runs with a worker.
        self._active: set[str] = set()

    def carry_out(self) -> None:
        """Return when no run is left that can begin.

        A run that fails is noted and said, and the others go on. At Ctrl-C those under way are cancelled before
        ``KeyboardInterrupt`` is passed on. Raises ``RunError`` when the services are not what a run needs,
        ``ServiceError``, ``StateFileError``.
        """
        slots = slots_of(self._study.spec, self._folder.read_runs())
        with ThreadPoolExecutor(len(slots)) as pool:
            work = [pool.submit(self._work, slot) for slot in slots]
            try:
                wait(work)
            except KeyboardInterrupt:
                self._progress.note("Stopping after the current operation.")
                self._stop()
                raise
            for one in work:
                one.result()

    def _work(self, slot: int) -> None:
        try:
            with channel_to("trainer") as channel:
                stub = trainer_pb2_grpc.TrainerServiceStub(channel)
                while (key := self._next(slot)) is not None:
                    try:
                        self._carry_out(stub, *key, slot)
                    finally:
                        with self._changed:
                            self._under_way.discard(key)
                            self._over.add(key)
                            self._changed.notify_all()
        except BaseException:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            raise

    def _next(self, slot: int) -> Key | None:
        """The next run of a slot, marked as under way; waits while another slot's run may let one begin."""
        with self._changed:
            while not self._stopping:
                self._folder.tick()
                runs = self._folder.read_runs()
                key = next_run(self._study.spec, runs, self._under_way | self._over, slot)
                if key is None and not self._under_way:
                    return None
                if key is None:
                    self._changed.wait()
                elif why := self._may_begin(key[0]):
                    self._over.add(key)
                    self._progress.note(f"{key[0]}, seed {key[1]} does not begin: {why}")
                else:
                    self._under_way.add(key)
                    return key
            return None

    def _carry_out(self, stub: trainer_pb2_grpc.TrainerServiceStub, arm: str, seed: int, slot: int) -> None:
        run = self._folder.read_runs().get((arm, seed)) or StudyRun(arm, seed, str(uuid.uuid4()), slot)
        now = self._found(stub, run) if run.run else self._created(stub, run)
        resumed = now.state in _RESUMABLE
        if resumed:
            now = stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=now.id), timeout=QUICK).run
        run = self._note(run, now)
        self._progress.begin(run, resumed)
        with self._changed:
            self._active.add(now.id)
            stopping = self._stopping
        if stopping:
            stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=now.id), timeout=QUICK)
        for response in watch(stub, now.id, now.last_event.sequence if resumed else 0):
            if response.HasField("run"):
                now = response.run
            else:
                self._progress.show(run, response.event, now.spec)
                with self._changed:
                    self._folder.tick()
        with self._changed:
            self._active.discard(now.id)
        if now.state == run_pb2.RUN_STATE_SUCCEEDED:
            self._take_out(run)
        run = self._note(run, now)
        self._progress.end(run)

    def _created(self, stub: trainer_pb2_grpc.TrainerServiceStub, run: StudyRun) -> run_pb2.Run:
        """The run at the trainer, made if it was not: whoever was killed in between finds it by its request."""
        runs, before = self._folder.read_runs(), started_from(self._study.spec)[run.arm]
        start = policy_of(runs[before, run.seed]) if before else ""
        spec = run_spec(self._study, run.arm, run.seed, start, run.slot, self._services)
        _refuse(self._study, checks.problems(spec))
        with self._changed:
            self._folder.note_run(run)
        request = trainer_pb2.CreateRunRequest(request_id=run.request_id, spec=spec)
        return stub.CreateRun(request, timeout=QUICK).run

    def _found(self, stub: trainer_pb2_grpc.TrainerServiceStub, run: StudyRun) -> run_pb2.Run:
        try:
            return stub.GetRun(trainer_pb2.GetRunRequest(run_id=run.run), timeout=QUICK).run
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                raise RunError(
                    f"the trainer knows no run {run.run}, which {self._folder.runs} names: bring its database back, or "
                    "begin a study of another name"
                ) from error
            raise

    def _note(self, run: StudyRun, now: run_pb2.Run) -> StudyRun:
        state = run_pb2.RunState.Name(now.state).removeprefix("RUN_STATE_")
        seconds = run.seconds if now.state in ACTIVE else _seconds(now)
        noted = replace(run, run=now.id, artifacts=now.artifacts, state=state, error=now.error, seconds=seconds)
        with self._changed:
            self._folder.note_run(noted)
            self._folder.tick()
        return noted

    def _take_out(self, run: StudyRun) -> None:
        """The policies of its curve, before it is noted as done: a kill in between does this again."""
        succeeded = replace(run, state="SUCCEEDED")
        points = points_of(self._study.spec, {run.key: succeeded}, self._steps)
        take_out(self._folder, points, run, self._study.arms[run.arm].checkpoints.keep)

    def _stop(self) -> None:
        """Let nothing begin any more, and cancel what is under way."""
        with self._changed:
            self._stopping = True
            active = list(self._active)
            self._changed.notify_all()
        with ExitStack() as stack:
            try:
                channel = stack.enter_context(channel_to("trainer"))
                for run in active:
                    request = trainer_pb2.CancelRunRequest(run_id=run)
                    trainer_pb2_grpc.TrainerServiceStub(channel).CancelRun(request, timeout=QUICK)
            except ServiceError as error:
                self._progress.note(f"the runs under way could not be stopped: {error}")


def _refuse(study: CheckedStudy, problems: list[str]) -> None:
    if problems:
        hint = f"`charter up {study.spec.run}` starts the services that the study needs"
        raise RunError("\n".join([*problems, f"{hint}; the same command then goes on"]))


def _seconds(ended: run_pb2.Run) -> float:
    """How long a run took; of one that was resumed, without the start of its workers and the time between them."""
    if ended.attempts == 1:
        return (ended.end_time.ToNanoseconds() - ended.start_time.ToNanoseconds()) / 1e9
    return sum(seconds_of(Path(ended.artifacts)).values())

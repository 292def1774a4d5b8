"""The trainer over real gRPC, with real worker processes that only report."""

import contextlib
import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil  # type: ignore[import-untyped]
import pytest
from charter.rpc.channel import QUICK, connect
from charter.rpc.lifecycle import Addresses
from charter.trainer import supervisor
from charter.trainer.local_launcher import LOG_FILE, LocalLauncher
from charter.trainer.server import TrainerConfig, TrainerRoom, build
from charter.trainer.supervisor import TRAINER_STOPS
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.harness import running

ROOT = Path(__file__).resolve().parents[3]
WORKER = (sys.executable, str(ROOT / "tests" / "support" / "trainer_worker.py"))
# Files that a spec can name: a trainer looks into them.
PROMPTS = ROOT / "services" / "charter" / "spec" / "starter"
# Longest that a test waits for a worker; nothing depends on how long it takes.
PATIENCE = 60.0


class Client:
    """Calls of one trainer."""

    def __init__(self, channel: grpc.Channel, control: grpc.Channel, addresses: Addresses) -> None:
        self.runs = trainer_pb2_grpc.TrainerServiceStub(channel)
        self.reports = trainer_pb2_grpc.RunReportServiceStub(control)
        self.addresses = addresses

    def create(self, name: str, policy: str = "host:1") -> run_pb2.Run:
        request = trainer_pb2.CreateRunRequest(request_id=f"{name}@{policy}", spec=spec(name, policy))
        return self.runs.CreateRun(request, timeout=QUICK).run

    def get(self, run_id: str) -> run_pb2.Run:
        return self.runs.GetRun(trainer_pb2.GetRunRequest(run_id=run_id), timeout=QUICK).run

    def watch(self, run_id: str, after: int = 0) -> Iterator[trainer_pb2.WatchRunResponse]:
        request = trainer_pb2.WatchRunRequest(run_id=run_id, after_sequence=after)
        yield from self.runs.WatchRun(request, timeout=PATIENCE)

    def end(self, run_id: str) -> run_pb2.Run:
        """Wait for the run to end."""
        return list(self.watch(run_id))[-1].run

    def first_report(self, run_id: str, after: int = 0) -> None:
        """Wait until the worker has reported."""
        next(response for response in self.watch(run_id, after) if response.HasField("event"))

    def cancel(self, run_id: str) -> run_pb2.Run:
        return self.runs.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id), timeout=QUICK).run

    def resume(self, run_id: str, corrected: run_pb2.RunSpec | None = None) -> run_pb2.Run:
        request = trainer_pb2.ResumeRunRequest(run_id=run_id, spec=corrected)
        return self.runs.ResumeRun(request, timeout=QUICK).run

    def report(self, run_id: str, attempt: int, *sequences: int) -> trainer_pb2.ReportEventsResponse:
        events = [run_pb2.RunEvent(sequence=number, phase=run_pb2.PHASE_STARTING) for number in sequences]
        request = trainer_pb2.ReportEventsRequest(run_id=run_id, attempt=attempt, events=events)
        return self.reports.ReportEvents(request, timeout=QUICK)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.addresses.metrics}/metrics", timeout=QUICK) as page:
            return str(page.read().decode())


def spec(name: str, policy: str = "host:1") -> run_pb2.RunSpec:
    fields = {
        "name": name,
        "policy": {"model": "m"},
        "judge": {"model": "j"},
        "prompts": {"train": [str(PROMPTS / "train.jsonl")], "held_out": [str(PROMPTS / "held_out.jsonl")]},
        "comparisons": {"pairs": 2},
        "services": {"policy": [policy]},
    }
    return json_format.ParseDict(fields, run_pb2.RunSpec())


@contextmanager
def connected(room: TrainerRoom) -> Iterator[Client]:
    """Serve a trainer that tells its workers where it came to listen."""
    with running(room) as addresses, connect(addresses.main) as main, connect(addresses.control) as control:
        room.supervisor.control_address = addresses.control
        yield Client(main, control, addresses)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TrainerRoom]]:
    """Builds trainers over the same database and artifacts, as restarts do."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "services"))

    def make(command: tuple[str, ...] = WORKER) -> TrainerRoom:
        launcher = LocalLauncher(command)
        services = run_pb2.ServiceAddresses(judge="judge:1")
        return build(TrainerConfig(f"sqlite:///{tmp_path}/t.db", tmp_path / "runs", "unset:1", launcher, services))

    yield make
    # Workers outlive their trainer by design, so a test that fails would leave some behind.
    for log in tmp_path.glob(f"runs/*/{LOG_FILE}"):
        for pid in worker_pids(log):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if WORKER[1] in process.cmdline():
                    process.kill()


@pytest.fixture
def trainer(room: Callable[..., TrainerRoom]) -> Iterator[Client]:
    with connected(room()) as client:
        yield client


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    assert isinstance(error.value, grpc.Call)
    return error.value.code()


def refused(error: pytest.ExceptionInfo[grpc.RpcError]) -> set[str]:
    """The fields that a call was refused for."""
    assert code(error) is grpc.StatusCode.INVALID_ARGUMENT
    details = error_details_pb2.BadRequest()
    rpc_status.from_call(error.value).details[0].Unpack(details)
    return {one.field for one in details.field_violations}


def test_a_run_succeeds_and_can_be_watched_from_any_event(trainer: Client) -> None:
    run = trainer.create("finishes")
    assert run.state == run_pb2.RUN_STATE_RUNNING
    assert run.attempts == 1
    assert run.spec.ppo.steps == 8  # the default is stored
    # The spec's own addresses come first, then the trainer's, then those of `charter up`.
    services = run.spec.services
    assert ([*services.policy], services.judge, services.preference) == (["host:1"], "judge:1", "127.0.0.1:50053")
    watched = list(trainer.watch(run.id))
    assert [one.event.sequence for one in watched if one.HasField("event")] == [1, 2, 3, 4]
    assert watched[-1].run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert watched[-1].run.last_event.phase == run_pb2.PHASE_REPORTING
    assert [one.event.sequence for one in trainer.watch(run.id, after=2) if one.HasField("event")] == [3, 4]
    final = trainer.get(run.id)
    assert final.end_time.ToNanoseconds() >= final.start_time.ToNanoseconds() >= final.create_time.ToNanoseconds()
    assert (Path(final.artifacts) / "spec.json").is_file()


def test_a_trainer_that_stops_ends_its_watches_with_a_status_to_retry(room: Callable[..., TrainerRoom]) -> None:
    """They would hold the drain to its limit, and then end as CANCELLED."""
    stopping = room()
    with contextlib.ExitStack() as service, ThreadPoolExecutor(1) as reader:
        addresses = service.enter_context(running(stopping))
        stopping.supervisor.control_address = addresses.control
        with connect(addresses.main) as main, connect(addresses.control) as control:
            trainer = Client(main, control, addresses)
            watched = trainer.watch(trainer.create("idle").id)
            next(one for one in watched if one.HasField("event"))
            rest = reader.submit(list, watched)
            service.close()
            error = rest.exception(PATIENCE)
    assert isinstance(error, grpc.Call)
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, TRAINER_STOPS)


def test_creating_again_with_the_request_id_gives_the_same_run(trainer: Client) -> None:
    run = trainer.create("finishes")
    assert trainer.create("finishes").id == run.id
    assert trainer.end(run.id).attempts == 1


def test_a_crash_says_how_and_the_run_can_be_resumed(trainer: Client) -> None:
    run = trainer.create("crashes-once")
    failed = trainer.end(run.id)
    assert failed.state == run_pb2.RUN_STATE_FAILED
    assert "exit status 3" in failed.error
    assert "no room on the moon" in failed.error
    assert f"charter runs resume {run.id}" in failed.error
    again = trainer.resume(run.id)
    assert (again.state, again.attempts, again.error) == (run_pb2.RUN_STATE_RUNNING, 2, "")
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_SUCCEEDED
    events = [one.event for one in trainer.watch(run.id) if one.HasField("event")]
    assert [(event.sequence, event.text) for event in events] == [(1, "1"), (2, "2")]


def test_a_run_without_a_checkpoint_can_be_corrected(trainer: Client) -> None:
    run = trainer.create("crashes-once")
    assert "and with `--spec FILE` by a corrected spec" in trainer.end(run.id).error
    (corrected := spec("crashes-once")).ppo.steps = 3
    # What it has done so far does not depend on that, but on this.
    (Path(run.artifacts) / "labels.jsonl").touch()
    corrected.judge.model = "other"
    with pytest.raises(grpc.RpcError, match=r"pairs are judged already, by another judge\.model") as error:
        trainer.resume(run.id, corrected)
    assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
    corrected.judge.model = "j"
    corrected.ppo.minibatches = 99
    with pytest.raises(grpc.RpcError) as error:
        trainer.resume(run.id, corrected)
    assert refused(error) == {"spec.ppo.minibatches"}
    assert trainer.get(run.id).spec.ppo.steps == 8
    corrected.ppo.ClearField("minibatches")
    assert trainer.resume(run.id, corrected).spec.ppo.steps == 3
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_SUCCEEDED
    assert '"steps": 3' in (Path(run.artifacts) / "spec.json").read_text()


def test_a_run_with_a_checkpoint_keeps_its_spec(trainer: Client) -> None:
    run = trainer.create("crashes-once")
    (step := Path(run.artifacts) / "checkpoints" / "step-000001").mkdir(parents=True)
    (step / "COMPLETE").touch()
    assert f"charter runs resume {run.id}` continues from the newest checkpoint" in trainer.end(run.id).error
    with pytest.raises(grpc.RpcError, match="has learned already") as error:
        trainer.resume(run.id, spec("crashes-once"))
    assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
    trainer.resume(run.id)
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_SUCCEEDED


def test_every_mistake_in_a_spec_and_its_files_is_named(trainer: Client, tmp_path: Path) -> None:
    (bad := spec("finishes")).ppo.minibatches = 99
    bad.prompts.train[:] = [str(tmp_path / "gone.jsonl")]
    (tmp_path / "broken.jsonl").write_text("no json\n")
    bad.prompts.held_out.append(str(tmp_path / "broken.jsonl"))
    with pytest.raises(grpc.RpcError) as error:
        trainer.runs.CreateRun(trainer_pb2.CreateRunRequest(request_id="r", spec=bad), timeout=QUICK)
    assert refused(error) == {"spec.ppo.minibatches", "spec.prompts.train[0]", "spec.prompts.held_out[1]"}
    assert not trainer.runs.ListRuns(trainer_pb2.ListRunsRequest(), timeout=QUICK).runs


def test_exit_status_0_is_not_success_before_the_last_phase_is_done(trainer: Client) -> None:
    ended = trainer.end(trainer.create("leaves-early").id)
    assert ended.state == run_pb2.RUN_STATE_FAILED
    assert "exit status 0" in ended.error


def test_a_killed_worker_is_named_with_its_signal(trainer: Client) -> None:
    run = trainer.create("idle")
    trainer.first_report(run.id)
    os.kill(worker_pid(run), signal.SIGKILL)
    ended = trainer.end(run.id)
    assert ended.state == run_pb2.RUN_STATE_FAILED
    assert "SIGKILL" in ended.error


def test_a_worker_that_cannot_be_started_fails_the_run(room: Callable[..., TrainerRoom]) -> None:
    with connected(room(("/nowhere/worker",))) as trainer:
        run = trainer.create("finishes")
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert "/nowhere/worker" in run.error


def test_a_cancelled_worker_stops_at_its_next_report(trainer: Client) -> None:
    run = trainer.create("steps-until-cancelled")
    trainer.first_report(run.id)
    trainer.cancel(run.id)
    ended = trainer.end(run.id)
    assert ended.state == run_pb2.RUN_STATE_CANCELLED
    assert ended.error == ""
    # Cancelling is idempotent.
    assert trainer.cancel(run.id).state == run_pb2.RUN_STATE_CANCELLED


@pytest.mark.parametrize("name", ["idle", "stubborn"])
def test_a_worker_that_does_not_listen_is_ended(trainer: Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "COOPERATE_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "TERMINATE_SECONDS", PATIENCE if name == "idle" else 0.2)
    run = trainer.create(name)
    trainer.first_report(run.id)
    trainer.cancel(run.id)
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_CANCELLED


def test_reports_are_idempotent_and_fenced(trainer: Client) -> None:
    run = trainer.create("idle")
    trainer.first_report(run.id)
    trainer.report(run.id, 1, 1, 2)
    trainer.report(run.id, 1, 2, 3)
    with pytest.raises(grpc.RpcError) as stale:
        trainer.report(run.id, 2, 4)
    assert code(stale) is grpc.StatusCode.ABORTED
    with pytest.raises(grpc.RpcError) as unknown:
        trainer.report("nobody", 1, 1)
    assert code(unknown) is grpc.StatusCode.NOT_FOUND
    trainer.cancel(run.id)
    assert trainer.report(run.id, 1, 4).cancel_requested
    os.kill(worker_pid(run), signal.SIGKILL)
    assert trainer.end(run.id).state == run_pb2.RUN_STATE_CANCELLED
    with pytest.raises(grpc.RpcError) as late:
        trainer.report(run.id, 1, 5)
    assert code(late) is grpc.StatusCode.ABORTED
    assert [one.event.sequence for one in trainer.watch(run.id) if one.HasField("event")] == [1, 2, 3, 4]


def test_what_a_state_forbids_is_refused(trainer: Client) -> None:
    run = trainer.create("finishes")
    trainer.end(run.id)
    for call in (trainer.cancel, trainer.resume):
        with pytest.raises(grpc.RpcError, match="SUCCEEDED") as error:
            call(run.id)
        assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
    for unknown in (trainer.get, trainer.cancel, trainer.resume, trainer.end):
        with pytest.raises(grpc.RpcError, match="no run `nobody`") as error:
            unknown("nobody")
        assert code(error) is grpc.StatusCode.NOT_FOUND


def test_two_runs_do_not_share_a_policy_service(trainer: Client) -> None:
    run = trainer.create("idle")
    with pytest.raises(grpc.RpcError, match=run.id) as error:
        trainer.create("finishes")
    assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
    other = trainer.create("finishes", policy="host:2")
    assert trainer.end(other.id).state == run_pb2.RUN_STATE_SUCCEEDED
    os.kill(worker_pid(run), signal.SIGKILL)
    trainer.end(run.id)


def test_a_bad_spec_is_refused_by_field(trainer: Client) -> None:
    bad = spec("finishes")
    bad.ppo.learning_rate = float("nan")
    bad.name = "Not A Name"
    with pytest.raises(grpc.RpcError) as error:
        trainer.runs.CreateRun(trainer_pb2.CreateRunRequest(request_id="r", spec=bad), timeout=QUICK)
    assert refused(error) == {"spec.name", "spec.ppo.learning_rate"}
    assert not trainer.runs.ListRuns(trainer_pb2.ListRunsRequest(), timeout=QUICK).runs


def test_runs_are_listed_in_pages(trainer: Client) -> None:
    made = [trainer.create("finishes", policy=f"host:{number}").id for number in range(3)]
    first = trainer.runs.ListRuns(trainer_pb2.ListRunsRequest(page_size=2), timeout=QUICK)
    request = trainer_pb2.ListRunsRequest(page_size=2, page_token=first.next_page_token)
    second = trainer.runs.ListRuns(request, timeout=QUICK)
    assert [run.id for run in (*first.runs, *second.runs)] == made[::-1]
    assert second.next_page_token == ""
    with pytest.raises(grpc.RpcError, match="page_token") as error:
        trainer.runs.ListRuns(trainer_pb2.ListRunsRequest(page_token="x"), timeout=QUICK)
    assert code(error) is grpc.StatusCode.INVALID_ARGUMENT
    for run_id in made:
        trainer.end(run_id)


def test_a_restarted_trainer_takes_up_living_workers(room: Callable[..., TrainerRoom]) -> None:
    with connected(room()) as trainer:
        run = trainer.create("idle")
        trainer.first_report(run.id)
    with connected(room()) as trainer:
        assert trainer.get(run.id).state == run_pb2.RUN_STATE_RUNNING
        os.kill(worker_pid(run), 0)
        trainer.report(run.id, 1, 2)
        os.kill(worker_pid(run), signal.SIGKILL)
        ended = trainer.end(run.id)
        assert ended.state == run_pb2.RUN_STATE_FAILED
        assert "ended unseen" in ended.error


def test_a_restarted_trainer_fails_runs_whose_worker_has_gone(room: Callable[..., TrainerRoom]) -> None:
    with connected(room()) as trainer:
        run = trainer.create("idle")
        trainer.first_report(run.id)
    os.kill(worker_pid(run), signal.SIGKILL)
    with connected(room()) as trainer:
        assert trainer.end(run.id).state == run_pb2.RUN_STATE_FAILED
        assert trainer.resume(run.id).attempts == 2
        trainer.first_report(run.id, after=1)
        os.kill(worker_pid(run), signal.SIGKILL)
        trainer.end(run.id)


def test_metrics_show_running_runs_only(trainer: Client) -> None:
    run = trainer.create("steps-until-cancelled")
    trainer.first_report(run.id)
    page = trainer.metrics()
    assert f'charter_run_step{{run="{run.id}"}}' in page
    assert f'charter_run_last_heard_timestamp_seconds{{run="{run.id}"}}' in page
    assert 'charter_runs{state="running"} 1.0' in page
    trainer.cancel(run.id)
    trainer.end(run.id)
    page = trainer.metrics()
    assert run.id not in page
    assert 'charter_runs{state="cancelled"} 1.0' in page


def worker_pids(log: Path) -> list[int]:
    """Process ids that the workers of a run wrote into its log."""
    return [int(line.removeprefix("pid ")) for line in log.read_text().splitlines() if line.startswith("pid ")]


def worker_pid(run: run_pb2.Run) -> int:
    return worker_pids(Path(run.artifacts) / LOG_FILE)[-1]

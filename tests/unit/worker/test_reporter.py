"""Reports over a real channel: in order, once, and not lost when the trainer is away."""

import json
import math
import shutil
from pathlib import Path

import grpc
import pytest
from charter.rpc.errors import ServiceError
from charter.runs.artifacts import Artifacts, RunFolderGoneError
from charter.v1 import run_pb2
from charter.worker import metrics, reporter
from charter.worker.errors import Cancelled, RunError
from charter.worker.reporter import Reporter
from prometheus_client import REGISTRY

from tests.support.worker_trainer import listening


def make(folder: Path, trainer: str = "", attempt: int = 1) -> Reporter:
    return Reporter(Artifacts(folder, "r"), "r", attempt, trainer)


def test_events_reach_file_and_trainer_in_order(tmp_path: Path) -> None:
    with listening(lambda event: False) as (address, listener):
        one = make(tmp_path, address)
        with one.in_phase(run_pb2.PHASE_PPO):
            for step in (1, 2, 3):
                one.report(step, 3, step=step, numbers={"score_mean": 0.5 * step})
        one.close()
    assert list(listener.events) == [1, 2, 3]
    assert [event.metrics["score_mean"] for event in listener.events.values()] == [0.5, 1.0, 1.5]
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in written] == [1, 2, 3]
    assert written[0]["phase"] == "PHASE_PPO"
    assert json.loads((tmp_path / "run.json").read_text())["phase_seconds"].keys() == {"PPO"}


def test_a_new_attempt_counts_on_and_delivers_what_was_lost(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.report(1, 2)
    first.report(2, 2)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"sequence": "3", "pha')
    with listening(lambda event: False) as (address, listener):
        second = make(tmp_path, address, attempt=2)
        second.report(1, 1, text="again")
        second.close()
    assert list(listener.events) == [1, 2, 3]
    assert listener.events[3].text == "again"


def test_a_trainer_that_is_away_gets_its_events_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(lambda event: False) as (address, _):
        port = int(address.rpartition(":")[2])
    monkeypatch.setattr(reporter, "_PATIENCE_SECONDS", 0.0)
    one = make(tmp_path, f"127.0.0.1:{port}")
    one.report(1, 3)
    one.report(2, 3)
    with listening(lambda event: False, port) as (_, listener):
        while not listener.events:
            one.report(3, 3)
        assert list(listener.events)[:3] == [1, 2, 3]
        one.close()


def test_the_end_waits_for_a_trainer_that_is_away_and_does_not_ask_it_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(lambda event: False) as (address, _):
        pass
    monkeypatch.setattr(reporter, "_PATIENCE_SECONDS", 1.0)
    one = make(tmp_path, address)
    one.report(1, 3)
    one.close()
    assert 1 <= caplog.messages.count("events wait") <= 3
    assert caplog.messages[-1] == "events were not delivered"


@pytest.mark.parametrize("remade", [False, True])
def test_a_folder_that_is_deleted_ends_the_run_at_its_next_event(tmp_path: Path, remade: bool) -> None:
    """Not at its end, and not with the files that it happens to make again."""
    folder = tmp_path / "run"
    one = make(folder)

    def steps() -> None:
        with one.in_phase(run_pb2.PHASE_PPO):
            one.report(1, 3)
            shutil.rmtree(folder)
            if remade:
                (folder / "checkpoints").mkdir(parents=True)
            one.report(2, 3)

    with pytest.raises(RunFolderGoneError, match=f"{folder} was deleted"):
        steps()
    assert not (folder / "run.json").exists()


def test_cancel_is_heard(tmp_path: Path) -> None:
    with listening(lambda event: event.done == 2) as (address, _):
        one = make(tmp_path, address)
        one.report(1, 3)
        one.raise_if_stopped()
        one.report(2, 3)
        assert one.stop_requested
        with pytest.raises(Cancelled):
            one.raise_if_stopped()
        one.close()


def test_a_service_that_is_no_trainer_is_an_error(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    one = make(tmp_path, f"127.0.0.1:{port}")
    with pytest.raises(ServiceError, match=r"the trainer service at .* does not know this call"):
        one.report(1, 1)
    server.stop(0).wait()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_never_leave(tmp_path: Path, value: float) -> None:
    one = make(tmp_path)
    with pytest.raises(RunError, match="kl_k1 is not a finite number"):
        one.report(1, 1, numbers={"score_mean": 1.0, "kl_k1": value})
    assert not (tmp_path / "events.jsonl").exists()


def test_prometheus_shows_the_last_numbers_and_nothing_before_the_first(tmp_path: Path) -> None:
    one = make(tmp_path)

    def shown(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"run": "r", **labels})

    # Other tests of this process have had runs of their own.
    for gauge in (*metrics._PPO_GAUGES.values(), *metrics._FIT_GAUGES.values(), metrics._DONE, metrics._DIMENSION):
        gauge.clear()
    exported = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    assert not {f"charter_ppo_{name}" for name in metrics.PPO} & exported
    assert not {f"charter_preference_fit_{name}" for name in metrics.FIT} & exported
    one.phase = run_pb2.PHASE_PPO
    one.report(3, 4, step=3, numbers={"score_mean": 0.75, "kl_k1": 1.25, "score_mean.helpful": 0.5})
    assert shown("charter_ppo_score_mean", preference_version="") == 0.75
    assert shown("charter_ppo_kl_k1") == 1.25
    assert shown("charter_ppo_dimension_score_mean", dimension="helpful", preference_version="") == 0.5
    assert shown("charter_ppo_kl_k3") is None
    assert shown("charter_worker_phase_done_ratio") == 0.75
    assert shown("charter_worker_phase", phase="PPO") == 1.0
    assert shown("charter_worker_phase", phase="JUDGING") == 0.0
    one.phase = run_pb2.PHASE_FITTING_PREFERENCE_MODEL
    one.report(1, 4, numbers={"train_loss": 0.6})
    assert shown("charter_preference_fit_train_loss") == 0.6
    assert shown("charter_ppo_score_mean", preference_version="") == 0.75


def test_prometheus_shows_scores_of_one_preference_model(tmp_path: Path) -> None:
    """A refreshed one has another scale: a series of its own, and nothing is left of the scale before."""
    one = make(tmp_path)
    scored = {"score_mean": 0.75, "held_out_score": 0.5, "score_mean.helpful": 0.25}
    one.phase = run_pb2.PHASE_PPO
    for gauge in (*metrics._PPO_GAUGES.values(), metrics._DIMENSION):
        gauge.clear()
    metrics._scales.clear()

    def shown() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for family in REGISTRY.collect():
            for sample in family.samples:
                if sample.labels.get("run") == "r" and "preference_version" in sample.labels:
                    found.setdefault(sample.name.removeprefix("charter_ppo_"), set()).add(
                        sample.labels["preference_version"]
                    )
        return found

    one.report(1, 4, step=1, numbers=scored | {"preference_version": 1.0})
    one.report(1, 4, text="sampling")
    assert shown() == {"score_mean": {"1"}, "held_out_score": {"1"}, "dimension_score_mean": {"1"}}
    one.report(2, 4, step=2, numbers={"score_mean": -3.0, "kl_k1": 1.0, "preference_version": 2.0})
    assert shown() == {"score_mean": {"2"}}

"""Runs of two processes with real services: as good as one, stopped and ended together, and resumed by one."""

import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from charter.v1 import run_pb2
from charter.worker.training.checkpoint import complete

from tests.support.worker_services import Stage, assert_every_ppo_metric, exit_status, tiny_services
from tests.support.worker_trainer import listening


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("worker"), tiny_model) as stage:
        yield stage


def statuses(processes: list[BaseProcess]) -> list[int | None]:
    return [exit_status(process, 300) for process in processes]


def test_two_ranks_do_what_one_does_and_one_goes_on_from_their_checkpoint(stage: Stage) -> None:
    """Fit and steps beside those of one process; then cancelled after step 2, and brought to the end by one."""
    spec = stage.spec(judge={"labelled_pairs": ""}, evaluation={"every_steps": 1, "watched_prompts": 1})
    spec.checkpoints.every_steps = 3
    assert stage.work("alone", spec) == 0
    with listening(lambda event: event.step == 2) as (address, _), stage.ranks("two", spec, address) as processes:
        assert statuses(processes) == [3, 3]
    fits = [
        [dict(event.metrics) for event in stage.events(run) if event.phase == run_pb2.PHASE_FITTING_PREFERENCE_MODEL]
        for run in ("alone", "two")
    ]
    assert fits[0]
    assert len(fits[0]) == len(fits[1])
    for alone, two in zip(*fits, strict=True):
        assert two == pytest.approx(alone, rel=1e-4, abs=1e-4)
    first_alone, first_two = stage.ppo_steps("alone")[1], stage.ppo_steps("two")[1]
    for name in ("policy_loss", "value_loss", "policy_gradient_norm", "reward_mean", "kl_k3", "held_out_kl"):
        assert first_two[name] == pytest.approx(first_alone[name], rel=1e-3, abs=1e-4), name

    assert complete(stage.run_folder("two") / "checkpoints")[-1].name == "step-000002"
    assert stage.work("two", spec, attempt=2) == 0
    history = stage.ppo_steps("two")
    assert set(history) == {1, 2, 3}
    assert history[3].keys() == stage.ppo_steps("alone")[3].keys()


def test_a_signal_to_any_rank_stops_all_after_a_checkpoint(stage: Stage) -> None:
    """A node that is drained tells only its own processes; adapters learn, of policy and preference model."""
    spec = stage.spec(judge={"labelled_pairs": ""}, ppo={"lora_rank": 2}, preference_model={"lora_rank": 2})
    processes: list[BaseProcess] = []

    def terminate(event: run_pb2.RunEvent) -> bool:
        if event.step == 1:
            pid = processes[1].pid
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
        return False

    with listening(terminate) as (address, _), stage.ranks("terminated", spec, address) as started:
        processes += started
        assert statuses(processes) == [143, 143]
    assert complete(stage.run_folder("terminated") / "checkpoints")
    with stage.ranks("terminated", spec) as processes:
        assert statuses(processes) == [0, 0]
    for numbers in stage.ppo_steps("terminated").values():
        assert_every_ppo_metric(numbers)
    assert (stage.run_folder("terminated") / "report.html").is_file()


def test_a_rank_that_dies_ends_the_run(stage: Stage) -> None:
    processes: list[BaseProcess] = []

    def kill(event: run_pb2.RunEvent) -> bool:
        if event.step == 1:
            processes[1].kill()
        return False

    spec = stage.spec(judge={"labelled_pairs": ""})
    with listening(kill) as (address, _), stage.ranks("broken", spec, address) as started:
        processes += started
        assert statuses(processes) == [1, -signal.SIGKILL]

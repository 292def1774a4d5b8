"""Runs in which the services sleep while the worker computes. On a CPU no memory moves; the turns are the same."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.judge import server as judge
from charter.policy import server as policy
from charter.preference import server as preference
from charter.rpc.errors import ServiceError
from charter.v1 import run_pb2
from charter.worker.__main__ import STOPPED
from charter.worker.errors import SpecError
from charter.worker.stages.start import check_spec
from prometheus_client import REGISTRY

from tests.integration.policy.test_memory_service import assert_asks_to_come_back, generated, serving
from tests.integration.worker.test_resume import STEPS, assert_equal_to
from tests.support.harness import running
from tests.support.worker_services import Stage, exit_status, write_inputs
from tests.support.worker_trainer import listening

SECTIONS: dict[str, dict[str, Any]] = {"ppo": {"steps": STEPS, "max_staleness": 0}, "judge": {"labelled_pairs": ""}}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    folder, model = tmp_path_factory.mktemp("worker"), str(tiny_model)
    write_inputs(folder)
    store = f"sqlite:///{folder / 'store.db'}"
    with (
        running(policy.build(policy.PolicyConfig(model, folder / "staging-policy"))) as at_policy,
        running(judge.build(judge.JudgeConfig(model, folder / "constitution.yaml"))) as at_judge,
        running(
            preference.build(preference.PreferenceConfig({"default": model}, store, folder / "staging-preference"))
        ) as at_preference,
    ):
        addresses = run_pb2.ServiceAddresses(
            policy=[at_policy.main],
            policy_control=[at_policy.control],
            judge=at_judge.main,
            judge_control=at_judge.control,
            preference=at_preference.main,
            preference_control=at_preference.control,
        )
        yield Stage(folder, tiny_model, addresses)


def spec_of(stage: Stage, sharing: run_pb2.GpuSharing.ValueType) -> run_pb2.RunSpec:
    spec = stage.spec(**SECTIONS)
    spec.services.gpu_sharing = sharing
    return spec


@pytest.fixture(scope="module")
def together(stage: Stage) -> str:
    """Id of a run in which nobody sleeps."""
    before = times_asleep()
    assert stage.work("together", spec_of(stage, run_pb2.GPU_SHARING_TOGETHER)) == 0
    assert times_asleep() == before
    return "together"


def times_asleep() -> float:
    labels = {"grpc_service": "charter.v1.MemoryService", "grpc_method": "Sleep", "grpc_code": "OK"}
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return sum(
        sample.value
        for sample in samples
        if sample.name == "grpc_server_handled_total" and labels.items() <= sample.labels.items()
    )


def all_serve(stage: Stage) -> bool:
    at = stage.addresses
    return all(
        serving(address, f"charter.v1.{name}Service")
        for name, address in (("Policy", at.policy[0]), ("Judge", at.judge), ("Preference", at.preference))
    )


@pytest.mark.parametrize("sharing", [run_pb2.GPU_SHARING_SERVERS_SLEEP, run_pb2.GPU_SHARING_TAKE_TURNS])
def test_a_run_with_sleeping_services_is_the_same_run(
    stage: Stage, together: str, sharing: run_pb2.GpuSharing.ValueType
) -> None:
    before = times_asleep()
    run = f"shared-{sharing}"
    assert stage.work(run, spec_of(stage, sharing)) == 0
    assert_equal_to(stage, together, run)
    # Policy, judge and preference model: once for the fit of the preference model, once for each step.
    assert times_asleep() - before == 3 * (1 + STEPS)
    assert all_serve(stage)


def test_services_that_a_killed_worker_leaves_asleep_are_woken_by_the_next(stage: Stage, together: str) -> None:
    spec = spec_of(stage, run_pb2.GPU_SHARING_TAKE_TURNS)
    with stage.process("killed", spec, "", ("charter.worker.reinforcement.update:Learner._critic_step", 3)) as worker:
        assert exit_status(worker, 240) == -signal.SIGKILL
    assert not all_serve(stage)
    with pytest.raises(ServiceError) as refused:
        generated(stage.addresses.policy[0])
    assert_asks_to_come_back(refused.value)
    assert stage.work("killed", spec, attempt=2) == 0
    assert_equal_to(stage, together, "killed")
    assert all_serve(stage)


def test_a_run_that_is_stopped_in_the_workers_turn_wakes_the_services(stage: Stage) -> None:
    spec = spec_of(stage, run_pb2.GPU_SHARING_TAKE_TURNS)
    asleep: list[float] = []

    def stop(event: run_pb2.RunEvent) -> bool:
        fitting = event.phase == run_pb2.PHASE_FITTING_PREFERENCE_MODEL and event.done > 0
        if fitting:
            asleep.append(REGISTRY.get_sample_value("charter_asleep", {"service": "policy"}) or 0)
        return fitting

    with listening(stop) as (address, _):
        assert stage.work("stopped", spec, trainer=address) == STOPPED
    assert asleep[0] == 1
    assert all_serve(stage)


def test_a_shared_gpu_has_one_policy(stage: Stage) -> None:
    spec = spec_of(stage, run_pb2.GPU_SHARING_TAKE_TURNS)
    spec.services.policy.append(spec.services.policy[0])
    spec.services.policy_control.append(spec.services.policy_control[0])
    with pytest.raises(SpecError, match="one policy and one judge"):
        check_spec(spec)

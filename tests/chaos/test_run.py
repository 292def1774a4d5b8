"""Whole runs whose services are not always there: one is killed and comes back, all are late."""

import math
from contextlib import ExitStack
from pathlib import Path

import pytest
from charter.v1 import run_pb2

from tests.support.processes import Process
from tests.support.worker_services import Stage, assert_every_ppo_metric, tiny_services, write_inputs
from tests.support.worker_trainer import listening


@pytest.mark.timeout(900)
def test_a_run_outlives_a_replica(tmp_path: Path, tiny_model: Path) -> None:
    with ExitStack() as stack:
        replicas = [stack.enter_context(Process(tmp_path, "policy", f"--model={tiny_model}")) for _ in range(2)]
        stage = stack.enter_context(tiny_services(tmp_path, tiny_model))
        for one in replicas:
            one.wait_serving()
        spec = stage.spec(ppo={"steps": 4, "learning_rate": 1e-3}, judge={"labelled_pairs": ""})
        spec.services.policy[:] = [one.main for one in replicas]
        spec.services.policy_control[:] = [one.control for one in replicas]

        def disturb(event: run_pb2.RunEvent) -> bool:
            if event.step == 1:
                replicas[0].kill()
            if event.step == 2:
                replicas[0].start()
            return False

        with listening(disturb) as (address, _):
            assert stage.work("disturbed", spec, trainer=address) == 0
        steps = stage.ppo_steps("disturbed")
        assert set(steps) == {1, 2, 3, 4}
        for numbers in steps.values():
            assert_every_ppo_metric(numbers)
            assert all(math.isfinite(value) for value in numbers.values())
            # Whoever answered had the trainer's weights.
            assert numbers["probe_mismatch_max"] < 1e-3
        assert replicas[1].version() == 5


@pytest.mark.timeout(900)
def test_a_run_that_begins_before_its_services_waits_for_each(tmp_path: Path, tiny_model: Path) -> None:
    write_inputs(tmp_path)
    model, constitution = f"--model={tiny_model}", f"--constitution={tmp_path / 'constitution.yaml'}"
    with ExitStack() as stack:
        policy = stack.enter_context(Process(tmp_path, "policy", model))
        judge = stack.enter_context(Process(tmp_path, "judge", model, constitution, control=False))
        preference = stack.enter_context(Process(tmp_path, "preference", model))
        services = {"policy": policy, "judge": judge, "preference": preference}
        for one in services.values():
            one.kill()
        addresses = run_pb2.ServiceAddresses(
            policy=[policy.main],
            policy_control=[policy.control],
            judge=judge.main,
            preference=preference.main,
            preference_control=preference.control,
        )
        stage = Stage(tmp_path, tiny_model, addresses)
        spec = stage.spec(judge={"labelled_pairs": ""}, ppo={"steps": 1})
        said: dict[str, str] = {}

        def start(event: run_pb2.RunEvent) -> bool:
            if event.text.startswith("waiting"):
                (name,) = (name for name in services if f" the {name} " in event.text)
                if name not in said:
                    said[name] = event.text
                    services[name].start()
            return False

        with listening(start) as (address, _):
            assert stage.work("early", spec, trainer=address) == 0
        assert list(said) == ["policy", "judge", "preference"]
        for name, text in said.items():
            assert services[name].main.rpartition(":")[0] in text
            assert "cannot be reached" in text
            assert f"`charter serve {name}`" in text
            assert "The run goes on when" in text
        assert set(stage.ppo_steps("early")) == {1}

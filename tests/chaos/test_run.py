"""A whole run on two policy replicas, one of which is killed and comes back."""

import math
from contextlib import ExitStack
from pathlib import Path

import pytest
from charter.v1 import run_pb2

from tests.chaos.processes import Process
from tests.integration.worker_services import assert_every_ppo_metric, tiny_services
from tests.integration.worker_trainer import listening


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

"""A run goes on while each service is replaced as a rolling update does it: SIGTERM, drain, a new process."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from charter.v1 import run_pb2

from tests.support.processes import Process
from tests.support.worker_services import Stage, write_inputs
from tests.support.worker_trainer import listening


@pytest.mark.timeout(900)
def test_a_run_outlives_the_update_of_every_service(tmp_path: Path, tiny_model: Path) -> None:
    write_inputs(tmp_path)
    model = f"--model={tiny_model}"
    constitution = f"--constitution={tmp_path / 'constitution.yaml'}"
    with ExitStack() as stack:
        policy = stack.enter_context(Process(tmp_path, "policy", model))
        judge = stack.enter_context(Process(tmp_path, "judge", model, constitution, control=False))
        preference = stack.enter_context(Process(tmp_path, "preference", model))
        for one in (policy, judge, preference):
            one.wait_serving()
        addresses = run_pb2.ServiceAddresses(
            policy=[policy.main],
            policy_control=[policy.control],
            judge=judge.main,
            preference=preference.main,
            preference_control=preference.control,
        )
        stage = Stage(tmp_path, tiny_model, addresses)
        spec = stage.spec(judge={"labelled_pairs": ""})
        updating = stack.enter_context(ThreadPoolExecutor(1))
        updates: dict[int, Future[int]] = {}

        def update(event: run_pb2.RunEvent) -> bool:
            due = {1: policy, 2: preference, 3: judge}.get(event.step)
            if due is not None and event.step not in updates:
                updates[event.step] = updating.submit(due.replace)
            return False

        with listening(update) as (address, trainer):
            assert stage.work("updated", spec, trainer=address) == 0
        assert {step: one.result() for step, one in updates.items()} == {1: 0, 2: 0, 3: 0}
    assert set(stage.ppo_steps("updated")) == {1, 2, 3}
    # Every report once, none missing; every label kept.
    assert sorted(trainer.events) == list(range(1, len(trainer.events) + 1))
    assert sum(json.loads((stage.run_folder("updated") / "labels.jsonl").read_text()).values()) == 8

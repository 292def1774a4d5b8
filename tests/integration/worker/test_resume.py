"""Runs that are killed, cancelled or disturbed, and what they resume to."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from charter.inference.preference_model import PreferenceModel
from charter.judge import server as judge
from charter.v1 import run_pb2
from charter.weights.sender import send_weights
from charter.worker.__main__ import REFUSED, STOPPED
from charter.worker.reinforcement.progress import newest_progress
from safetensors.torch import load_file

from tests.support.harness import running
from tests.support.worker_services import CONSTITUTION, Stage, exit_status, tiny_services
from tests.support.worker_trainer import listening

STEPS = 4


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("worker"), tiny_model) as stage:
        yield stage


@pytest.fixture(scope="module")
def unbroken(stage: Stage) -> str:
    """Id of a run that nobody disturbed."""
    assert stage.work("unbroken", spec_of(stage)) == 0
    return "unbroken"


def spec_of(stage: Stage) -> run_pb2.RunSpec:
    return stage.spec(ppo={"steps": STEPS}, judge={"labelled_pairs": ""})


def assert_equal_to(stage: Stage, unbroken: str, run: str) -> None:
    """Final weights, optimizers and history are those of the unbroken run, bit for bit."""
    for name in ("policy/model.safetensors", *(f"checkpoints/step-00000{STEPS}/{one}" for one in FILES)):
        expected = load_file(stage.run_folder(unbroken) / name)
        got = load_file(stage.run_folder(run) / name)
        assert expected.keys() == got.keys()
        different = [key for key, tensor in expected.items() if not torch.equal(tensor, got[key])]
        assert not different, f"{name}: {len(different)} of {len(expected)} tensors differ"
    history, expected_history = stage.ppo_steps(run), stage.ppo_steps(unbroken)
    assert set(history) == set(expected_history) == set(range(1, STEPS + 1))
    timed = ("seconds", "per_second", "idle_share")
    for step, numbers in expected_history.items():
        for name, value in numbers.items():
            if not name.endswith(timed):
                assert history[step][name] == value, f"{name} of step {step}"
    samples, expected_samples = ((stage.run_folder(one) / "samples.jsonl").read_text() for one in (run, unbroken))
    assert samples == expected_samples


SHARD = "shard-00001-model-00001-of-00001.safetensors"
PARTS = ("actor", "actor_optimizer", "critic", "critic_optimizer")
FILES = ("torch_rng.safetensors", *(f"{part}/{SHARD}" for part in PARTS))


@pytest.mark.parametrize(
    ("phase", "done"),
    [
        (run_pb2.PHASE_JUDGING, 8),
        (run_pb2.PHASE_FITTING_PREFERENCE_MODEL, 1),
        # Reported before its checkpoint: the step runs again.
        (run_pb2.PHASE_PPO, 3),
    ],
)
def test_a_killed_run_ends_like_one_that_was_not(
    stage: Stage, unbroken: str, phase: run_pb2.Phase.ValueType, done: int
) -> None:
    run = f"killed-{phase}-{done}"
    pids: list[int] = []

    def kill(event: run_pb2.RunEvent) -> bool:
        if event.phase == phase and event.done >= done:
            os.kill(pids[0], signal.SIGKILL)
        return False

    with listening(kill) as (address, _), stage.process(run, spec_of(stage), address) as worker:
        assert worker.pid is not None
        pids.append(worker.pid)
        assert exit_status(worker, 240) == -signal.SIGKILL
    assert stage.work(run, spec_of(stage), attempt=2) == 0
    assert_equal_to(stage, unbroken, run)


# What is broken off, where the worker kills itself, at which call, and the newest checkpoint that is then left.
SAMPLING = [
    ("before the first batch", "charter.worker.reinforcement.sampling.rollouts:sample", 1, 0),
    ("half of the first batch", "charter.worker.clients.policy:_answer", 4, 0),
    (
        "half of the batch ahead, while the first is scored or learned from",
        "charter.worker.clients.policy:_answer",
        10,
        0,
    ),
    ("scoring", "charter.worker.reinforcement.sampling.rewards:score", 1, 0),
    (
        "the policy is updated in part, the critic not yet",
        "charter.worker.reinforcement.update:Learner._critic_step",
        1,
        0,
    ),
]
UPDATING = [
    ("the batch ahead is there, the weights not sent", "charter.worker.stages.ppo:serve_learner", 1, 0),
    (
        "the batch ahead is half written to the second checkpoint",
        "charter.worker.reinforcement.progress:write_batches",
        2,
        1,
    ),
    ("what was under way is sampled again", "charter.worker.reinforcement.sampling.rollouts:sample", 1, 1),
    ("learning from answers of the checkpoint", "charter.worker.reinforcement.update:Learner._critic_step", 1, 1),
    ("half of the weights are sent", "charter.weights.sender:_parts", 2, 1),
    ("the step is reported, its samples are not written", "charter.worker.reinforcement.samples:samples_of", 1, 1),
]
SAVING = [
    ("weights sent, checkpoint half written", "charter.worker.training.checkpoint:_write", 3, 0),
    ("checkpoint renamed, not marked", "charter.worker.training.checkpoint:_sync", 9, 0),
    ("third checkpoint marked, the oldest not deleted", "charter.worker.training.checkpoint:_sync", 33, 3),
    ("last step saved, policy not written", "charter.worker.stages.ppo:_write_policy", 1, 4),
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("run", "instants"), [("killed-sampling", SAMPLING), ("killed-updating", UPDATING), ("killed-saving", SAVING)]
)
def test_killed_at_every_instant_of_a_step(
    stage: Stage, unbroken: str, run: str, instants: list[tuple[str, str, int, int]]
) -> None:
    """One run, killed again and again: each attempt dies at the next of these places, and the last one finishes."""
    for what, place, times, newest in instants:
        with stage.process(run, spec_of(stage), "", (place, times)) as worker:
            assert exit_status(worker, 600) == -signal.SIGKILL, what
        # What was not saved is done again; nothing that was not marked complete is taken for a checkpoint.
        found = newest_progress(stage.run_folder(run) / "checkpoints")
        assert (found[1].step if found else 0) == newest, what
    assert stage.work(run, spec_of(stage), attempt=len(instants) + 1) == 0
    assert_equal_to(stage, unbroken, run)


def test_cancel_keeps_a_checkpoint_and_exits_with_3(stage: Stage, unbroken: str) -> None:
    """Asked to stop when step 2 is reported, with checkpoints every 3 steps: step 2 is saved and step 3 not done."""
    spec = spec_of(stage)
    spec.checkpoints.every_steps = 3
    with listening(lambda event: event.step == 2) as (address, listener):
        assert stage.work("cancelled", spec, trainer=address) == 3
    assert [path.name for path in (stage.run_folder("cancelled") / "checkpoints").iterdir()] == ["step-000002"]
    assert list(listener.events) == [event.sequence for event in stage.events("cancelled")]
    with listening(lambda event: False) as (address, again):
        assert stage.work("cancelled", spec, attempt=2, trainer=address) == 0
    # A trainer that had lost the first events has them now.
    assert list(again.events) == [event.sequence for event in stage.events("cancelled")]
    assert_equal_to(stage, unbroken, "cancelled")


def test_sigterm_stops_cleanly(stage: Stage) -> None:
    pids: list[int] = []

    def terminate(event: run_pb2.RunEvent) -> bool:
        if event.step == 1:
            os.kill(pids[0], signal.SIGTERM)
        return False

    with listening(terminate) as (address, _), stage.process("terminated", spec_of(stage), address) as worker:
        assert worker.pid is not None
        pids.append(worker.pid)
        assert exit_status(worker, 240) == 143
    assert stage.events("terminated")[-1].text == "stopped on request"
    assert (stage.run_folder("terminated") / "checkpoints" / "step-000001" / "COMPLETE").is_file()


def test_foreign_preference_weights_stop_the_run(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody else's preference model under the same version number must not become a reward."""
    other = PreferenceModel.from_causal_lm(stage.model, seed=99)

    def disturb(event: run_pb2.RunEvent) -> bool:
        if event.step == 1:
            send_weights(stage.addresses.preference_control, other.state_tensors(), 1, force=True)
        return False

    with listening(disturb) as (address, _):
        assert stage.work("disturbed", spec_of(stage), trainer=address) == 1
    assert "preference service does not serve this run's weights" in caplog.messages[-1]
    assert max(stage.ppo_steps("disturbed")) == 1
    assert stage.work("disturbed", spec_of(stage), attempt=2) == 0


def test_foreign_policy_weights_stop_the_run(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    def disturb(event: run_pb2.RunEvent) -> bool:
        if event.step == 1:
            tensors = load_file(stage.model / "model.safetensors")
            send_weights(stage.addresses.policy_control[0], tensors, 9)
        return False

    with listening(disturb) as (address, _):
        assert stage.work("other-policy", spec_of(stage), trainer=address) == 1
    assert "does not serve this run's weights any more, but version 9 of somebody else" in caplog.messages[-1]


def test_labels_that_all_fail_stop_the_run(stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A principle that does not fit the judge's context makes every label INVALID."""
    path = tmp_path / "long.yaml"
    path.write_text(CONSTITUTION.replace("You are kind.", "Kind " * 150).replace("You are careful.", "Safe " * 150))
    with running(judge.build(judge.JudgeConfig(str(stage.model), path))) as at:
        spec = spec_of(stage)
        spec.services.judge = at.main
        spec.judge.constitution = str(path)
        assert stage.work("unlabelled", spec) == REFUSED
    assert "labelling: 8 of 8 left out: 8 too long" in caplog.messages[-1]
    counts = [event.metrics for event in stage.events("unlabelled") if event.phase == run_pb2.PHASE_JUDGING]
    assert counts[-1]["outcome_INVALID"] > 0


def test_superseded_worker_stops(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The trainer answers ABORTED to an attempt that is not the current one."""

    class Refuses(grpc.ServerInterceptor):  # type: ignore[misc]
        """Stands for a trainer that has started attempt 2."""

        def intercept_service(self, continuation: object, details: object) -> grpc.RpcMethodHandler:
            def refuse(request: bytes, context: grpc.ServicerContext) -> None:
                context.abort(grpc.StatusCode.ABORTED, "attempt 1 is not the current one")

            return grpc.unary_unary_rpc_method_handler(refuse)

    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1), interceptors=[Refuses()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert stage.work("superseded", spec_of(stage), trainer=f"127.0.0.1:{port}") == STOPPED
    finally:
        server.stop(0).wait()
    assert "a newer worker has taken over" in caplog.messages[-1]
    assert not (stage.run_folder("superseded") / "pairs.jsonl").exists()

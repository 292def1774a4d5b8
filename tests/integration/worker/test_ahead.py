"""Batches that are sampled ahead, from a fake policy through the worker's real client."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.policy import server
from charter.rpc.errors import ServiceError
from charter.runs.artifacts import Artifacts
from charter.spec.defaults import fill_defaults
from charter.v1 import judge_pb2, run_pb2
from charter.weights.sender import send_weights
from charter.worker.clients.services import Services
from charter.worker.context import Run
from charter.worker.errors import Cancelled, RunError
from charter.worker.prompts import PromptSets
from charter.worker.reinforcement.progress import Progress
from charter.worker.reinforcement.sampling.ahead import Ahead, sampling_ahead
from charter.worker.reinforcement.sampling.rollouts import Batch
from charter.worker.reinforcement.step import Controls
from charter.worker.reporter import Reporter
from charter.worker.training.lead import Leader

from tests.support.harness import running
from tests.support.worker_trainer import listening

PROMPTS = tuple(TaskPrompt(str(n), (ChatMessage("user", f"Question {n}?"),), "") for n in range(5))


@contextmanager
def fake_run(folder: Path, settings: dict[str, float], **ppo: Any) -> Iterator[Run]:
    """A run of two answers a step on a fake policy, which serves version 1. Its trainer asks it to stop at once."""
    spec = fill_defaults(run_pb2.RunSpec(ppo=run_pb2.PpoSpec(episodes_per_step=2, **ppo)))
    config = server.PolicyConfig("fake", folder / "staging", "fake", dict(settings))
    with running(server.build(config)) as at, listening(lambda event: True) as (trainer, _):
        artifacts = Artifacts(folder / "run", "run")
        reporter = Reporter(artifacts, "run", 1, trainer)
        spec.services.policy[:], spec.services.policy_control[:] = [at.main], [at.control]
        spec.services.judge = spec.services.preference = spec.services.preference_control = "127.0.0.1:9"
        services = Services(spec.services, reporter)
        try:
            send(services, 1)
            prompts = PromptSets(PROMPTS, PROMPTS, 0)
            constitution = judge_pb2.Constitution()
            yield Run("run", spec, artifacts, services, reporter, Leader(reporter), prompts, constitution, None)
        finally:
            services.close()
            reporter.close()


def send(services: Services, version: int) -> None:
    services.policy.send({"w": torch.full((4,), float(version))}, version)


def at(step: int) -> Progress:
    """Every step has made a version."""
    return Progress(step, 2 * step, 1 + step, Controls(0.05))


def versions(batch: Batch) -> set[int]:
    return {version for group in batch.groups for answer in group for version in answer.versions}


def begun(ahead: Ahead, steps: int) -> list[int]:
    """Steps whose batch can be taken."""
    found = []
    for step in range(steps):
        try:
            ahead.take(step)
        except KeyError:
            continue
        found.append(step)
    return found


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_no_batch_is_begun_that_could_become_too_stale(tmp_path: Path, staleness: int) -> None:
    steps = 5
    with fake_run(tmp_path, {}, steps=steps, max_staleness=staleness) as run, sampling_ahead(run, {}) as ahead:
        for step in range(steps):
            ahead.admit(at(step))
            # A step's own batch, and of those behind it just as many as may be; none for steps that never come.
            assert begun(ahead, steps + 3) == list(range(step, min(step + staleness + 1, steps)))
            ages = {at(step).weight_version - version for version in versions(ahead.take(step))}
            assert ages == {min(step, staleness)}
            ahead.settle()
            send(run.services, at(step + 1).weight_version)


def test_a_resumed_run_takes_what_was_sampled(tmp_path: Path) -> None:
    """Batches ahead are those that the checkpoint holds; the next is sampled as the run before would have done it."""
    with fake_run(tmp_path, {}, steps=9) as run:
        with sampling_ahead(run, {}) as ahead:
            ahead.admit(at(0))
            ahead.take(1)
            kept = ahead.sampled(at(1))
            assert list(kept) == [1]
            send(run.services, 2)
            ahead.admit(at(1))
            expected = ahead.take(2)
        with sampling_ahead(run, kept) as ahead:
            ahead.admit(at(1))
            assert ahead.take(1) is kept[1]
            again = ahead.take(2)
    assert versions(kept[1]) == {1}
    assert versions(again) == versions(expected) == {2}
    texts = [[[answer.text for answer in group] for group in batch.groups] for batch in (expected, again, kept[1])]
    assert texts[0] == texts[1] != texts[2]


def test_what_fails_in_the_background_is_raised_where_it_is_waited_for(tmp_path: Path) -> None:
    with fake_run(tmp_path, {"fail_every": 1}, steps=3) as run, sampling_ahead(run, {}) as ahead:
        ahead.admit(at(0))
        for wait in (lambda: ahead.take(0), ahead.settle):
            with pytest.raises(ServiceError) as error:
                wait()
            assert error.value.code == grpc.StatusCode.INTERNAL
        assert ahead.sampled(at(0)) == {}


def test_a_hung_policy_holds_nobody_up_who_leaves_or_stops(tmp_path: Path) -> None:
    """The policy sends one answer of two and hangs: the block ends all the same, and so does a wait."""
    with fake_run(tmp_path, {"stall_after": 1}, steps=3, samples_per_prompt=2) as run:
        with sampling_ahead(run, {}) as ahead:
            ahead.admit(at(0))
        with sampling_ahead(run, {}) as ahead:
            ahead.admit(at(0))
            run.reporter.report(0, 1)
            with pytest.raises(Cancelled):
                ahead.take(0)


def test_newer_weights_of_the_run_may_write_an_answer_others_not(tmp_path: Path) -> None:
    with fake_run(tmp_path, {}, steps=3) as run:
        messages = [prompt.messages for prompt in PROMPTS]

        def written_by(version: int) -> set[int]:
            answers = run.services.policy.generate(messages, run.spec.sampling, version=version, seed=0)
            return {written for (answer,) in answers for written in answer.versions}

        assert written_by(1) == {1}
        # As when weights arrive in the middle: what was asked of version 1 is written by 2.
        send(run.services, 2)
        assert written_by(1) == {2}
        send_weights(run.services.addresses.policy_control[0], {"w": torch.zeros(4)}, 9, force=True)
        with pytest.raises(RunError, match=r"answered with weight version \[9\], this run is at 2"):
            written_by(1)

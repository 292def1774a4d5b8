"""MemoryService over real channels: what a sleeping policy, judge and preference service do and refuse."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from charter.judge import server as judge
from charter.policy import server as policy
from charter.preference import server as preference
from charter.rpc.channel import QUICK, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.lifecycle import Addresses
from charter.v1 import (
    judge_pb2,
    judge_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    preference_pb2,
    preference_pb2_grpc,
    types_pb2,
)
from charter.weights.sender import send_weights
from charter.worker.clients.sleeper import send_to_sleep, wake_up
from grpc_health.v1 import health_pb2
from safetensors.torch import load_file

from tests.support.harness import health, running
from tests.support.worker_services import CONSTITUTION

HELLO = types_pb2.Message(role=types_pb2.ROLE_USER, content="Hello")


@pytest.fixture
def at_policy(tiny_model: Path, tmp_path: Path) -> Iterator[Addresses]:
    with running(policy.build(policy.PolicyConfig(str(tiny_model), tmp_path / "staging"))) as addresses:
        yield addresses


def generated(address: str, seed: int = 3) -> list[int]:
    request = policy_pb2.GenerateRequest(
        prompts=[policy_pb2.GenerationPrompt(messages=[HELLO], seed=seed)],
        sampling=policy_pb2.SamplingParameters(max_new_tokens=8),
    )
    with explained("policy", address), connect(address) as channel:
        (response,) = policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=QUICK)
    return list(response.sample.token_ids)


def serving(address: str, name: str) -> bool:
    return bool(health(address, name) == health_pb2.HealthCheckResponse.SERVING)


def assert_asks_to_come_back(error: ServiceError) -> None:
    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_seconds is not None
    assert "sleeps" in error.details


def test_a_sleeping_policy_refuses_and_is_the_same_afterwards(at_policy: Addresses) -> None:
    before = generated(at_policy.main)
    for _ in range(2):  # Idempotent.
        send_to_sleep("policy", at_policy.control)
    assert not serving(at_policy.main, "charter.v1.PolicyService")
    with pytest.raises(ServiceError) as refused:
        generated(at_policy.main)
    assert_asks_to_come_back(refused.value)
    for _ in range(2):
        wake_up("policy", at_policy.control)
    assert serving(at_policy.main, "charter.v1.PolicyService")
    assert generated(at_policy.main) == before


def test_weights_are_loaded_asleep_and_served_after_waking(at_policy: Addresses, tiny_model: Path) -> None:
    before = generated(at_policy.main)
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(tiny_model / "model.safetensors").items()
    }
    send_to_sleep("policy", at_policy.control)
    send_weights(at_policy.control, changed, 7)
    # The first weights since the start end their own NOT_SERVING, not that of the sleep.
    assert not serving(at_policy.main, "charter.v1.PolicyService")
    wake_up("policy", at_policy.control)
    assert serving(at_policy.main, "charter.v1.PolicyService")
    assert generated(at_policy.main) != before


def test_calls_under_way_end_first_and_new_ones_are_refused(tmp_path: Path) -> None:
    settings = {"seconds_per_token": 0.02}
    config = policy.PolicyConfig("fake", tmp_path / "staging", "fake", settings)
    with running(policy.build(config)) as at:
        request = policy_pb2.GenerateRequest(
            prompts=[policy_pb2.GenerationPrompt(messages=[HELLO], seed=seed) for seed in range(20)],
            sampling=policy_pb2.SamplingParameters(max_new_tokens=64),
        )
        with connect(at.main) as channel:
            answers = policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=QUICK)
            first = next(answers)
            sleeping = threading.Thread(target=send_to_sleep, args=("policy", at.control))
            sleeping.start()
            # The engine fails every call that reaches it while it sleeps.
            rest = list(answers)
            sleeping.join()
        assert sorted(one.prompt_index for one in [first, *rest]) == list(range(20))
        with pytest.raises(ServiceError) as refused:
            generated(at.main)
        assert_asks_to_come_back(refused.value)
        wake_up("policy", at.control)
        assert generated(at.main)


def test_a_drain_that_takes_too_long_changes_nothing(tmp_path: Path) -> None:
    config = policy.PolicyConfig("fake", tmp_path / "staging", "fake", {"stall_after": 1})
    with running(policy.build(config)) as at:
        request = policy_pb2.GenerateRequest(
            prompts=[policy_pb2.GenerationPrompt(messages=[HELLO], seed=seed) for seed in range(2)],
            sampling=policy_pb2.SamplingParameters(max_new_tokens=8),
        )
        with connect(at.main) as channel, connect(at.control) as control:
            hung = policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=QUICK)
            next(hung)
            with pytest.raises(grpc.RpcError) as late:
                memory_pb2_grpc.MemoryServiceStub(control).Sleep(memory_pb2.SleepRequest(), timeout=0.5)
            assert isinstance(late.value, grpc.Call)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            # Answered once the service has noticed that nobody waits any more.
            memory_pb2_grpc.MemoryServiceStub(control).Wake(memory_pb2.WakeRequest(), timeout=QUICK)
            assert serving(at.main, "charter.v1.PolicyService")
            assert generated(at.main)
            hung.cancel()


def test_a_sleeping_judge_still_says_what_it_judges_by(tmp_path: Path) -> None:
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    config = judge.JudgeConfig("fake", tmp_path / "constitution.yaml", "fake", "choice")
    request = judge_pb2.CompareRequest(
        items=[judge_pb2.ComparisonItem(id="1", prompt=[HELLO], answer_a="Hi.", answer_b="Go.")]
    )
    with running(judge.build(config)) as at, connect(at.main) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        (before,) = stub.Compare(request, timeout=QUICK)
        send_to_sleep("judge", at.control)
        assert not serving(at.main, "charter.v1.JudgeService")
        constitution = stub.GetConstitution(judge_pb2.GetConstitutionRequest(), timeout=QUICK).constitution
        assert constitution.name == "tiny"
        with pytest.raises(ServiceError) as refused, explained("judge", at.main):
            list(stub.Compare(request, timeout=QUICK))
        assert_asks_to_come_back(refused.value)
        wake_up("judge", at.control)
        (after,) = stub.Compare(request, timeout=QUICK)
        assert after == before


def test_a_sleeping_preference_service_stores_and_does_not_score(tiny_model: Path, tmp_path: Path) -> None:
    config = preference.PreferenceConfig(
        {"default": str(tiny_model)}, f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "staging"
    )
    comparison = types_pb2.Comparison(
        prompt=[HELLO],
        answer_a=types_pb2.Answer(text="Hi."),
        answer_b=types_pb2.Answer(text="Go."),
        source=types_pb2.LABEL_SOURCE_AI,
        outcome=types_pb2.OUTCOME_INVALID,
        split=types_pb2.SPLIT_TRAIN,
    )
    with running(preference.build(config)) as at, connect(at.main) as channel:
        stub = preference_pb2_grpc.PreferenceServiceStub(channel)
        send_to_sleep("preference", at.control)
        added = stub.AddComparisons(
            preference_pb2.AddComparisonsRequest(request_id="1", comparisons=[comparison]), timeout=QUICK
        )
        assert added.added == 1
        assert not serving(at.main, "charter.v1.PreferenceService")
        wake_up("preference", at.control)
        assert serving(at.main, "charter.v1.PreferenceService")

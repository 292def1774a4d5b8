"""The policy service with vLLM on a CPU: NCCL is refused without harm, and a prefix cache that is kept is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch
from charter.inference.vllm.engine import VllmEngine
from charter.policy.server import PolicyConfig, PolicyRoom, build
from charter.rpc.channel import connect
from charter.rpc.errors import ServiceError
from charter.rpc.lifecycle import Addresses
from charter.rpc.tensors import from_tensor
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.nccl_sender import NcclSender
from charter.weights.sender import pack_adapter, pack_weights, send_packed
from charter.worker.errors import RunError
from grpc_health.v1 import health_pb2
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.integration.policy.test_weight_planes import Client, held
from tests.support.harness import health, running

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
]

SECONDS = 600.0


@pytest.fixture(scope="module")
def room(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> PolicyRoom:
    settings = {"dtype": "float32", "kv_cache_gib": 0.5, "max_context_tokens": 2048}
    return build(PolicyConfig(str(real_model), tmp_path_factory.mktemp("staging"), "vllm", settings))


@pytest.fixture(scope="module")
def service(room: PolicyRoom) -> Iterator[Addresses]:
    # vLLM takes 40 s to start on a quiet machine of two cores, minutes on a busy one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.harness.START_SECONDS", 1200.0)
        with running(room) as addresses:
            yield addresses


@pytest.fixture(scope="module")
def weights(real_model: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(real_model / "model.safetensors")
    return tensors


@contextmanager
def generating(address: str, tokens: int, samples: int = 1) -> Iterator[Iterator[policy_pb2.GenerateResponse]]:
    """The texts of long answers as they grow."""
    request = policy_pb2.GenerateRequest(
        prompts=[
            policy_pb2.GenerationPrompt(messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Tell a story.")])
        ],
        sampling=policy_pb2.SamplingParameters(max_new_tokens=tokens, seed=1),
        samples_per_prompt=samples,
        stream_text=True,
    )
    with connect(address) as channel:
        yield policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=SECONDS)


def answer(address: str) -> policy_pb2.Sample:
    with generating(address, 4) as responses:
        (sample,) = [one.sample for one in responses if one.HasField("sample")]
    return sample


def test_every_token_has_its_log_prob_and_an_answer_ends_before_a_stop_text(
    service: Addresses, real_model: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    prompt = policy_pb2.GenerationPrompt(text="The capital of France is")
    scoring = policy_pb2.PolicyServiceScoreRequest(prompts=[prompt], top_logprobs=2)
    greedy = policy_pb2.SamplingParameters(temperature=0, max_new_tokens=16, top_logprobs=2)
    with connect(service.main) as channel:
        policy = policy_pb2_grpc.PolicyServiceStub(channel)
        (scored,) = policy.Score(scoring, timeout=SECONDS)
        plain = policy_pb2.GenerateRequest(prompts=[prompt], sampling=greedy)
        (whole,) = [one.sample for one in policy.Generate(plain, timeout=SECONDS)]
        stop = whole.text[9:12]
        greedy.stop.append(stop)
        stopping = policy_pb2.GenerateRequest(prompts=[prompt], sampling=greedy, stream_text=True)
        *partial, last = policy.Generate(stopping, timeout=SECONDS)

    prompt_ids = [one.token.token_id for one in scored.places]
    assert prompt_ids == list(whole.prompt_token_ids)
    with torch.no_grad():
        rows = model(torch.tensor([[*prompt_ids, *whole.token_ids]])).logits[0].log_softmax(-1)
    places = [*scored.places[1:], *whole.places]
    for place, row in zip(places, rows, strict=False):
        assert place.token.logprob == pytest.approx(float(row[place.token.token_id]), abs=2e-3)
        assert [one.logprob for one in place.top] == pytest.approx(row.topk(2)[0].tolist(), abs=2e-3)
    assert scored.next[0].token_id == whole.token_ids[0]
    assert "".join(one.token.text for one in scored.places) == scored.text == "The capital of France is"

    assert last.sample.finish_reason == policy_pb2.FINISH_REASON_STOP
    assert last.sample.text == whole.text[: whole.text.index(stop)]
    assert list(last.sample.token_ids) == list(whole.token_ids[: len(last.sample.token_ids)])
    assert partial
    assert all(last.sample.text.startswith(one.text_so_far) for one in partial)
    new = [one.token.token_id for response in partial for one in response.new_places]
    assert new == list(last.sample.token_ids[: len(new)])


def test_nccl_is_refused_without_a_gpu_and_the_replica_goes_on(
    service: Addresses, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    replica = (service.main, service.control)
    packed = pack_weights(weights, 2)
    with Client(tmp_path, [replica], weights_nccl=True) as client:
        with pytest.raises(
            RunError, match=r"the policy at .*, engine vllm, cannot take weights by NCCL: serve it with"
        ):
            client.services.policy.check_nccl()
        # It has no ranks for a broadcast: the weights come by gRPC, through the same back end of vLLM.
        client.services.policy.send(weights, 1)
        client.until_ready(1)
        sha256 = pack_weights(weights, 1).sha256
        assert held(service.control) == (1, sha256)

    # As a worker that asks all the same: vLLM's trainer side, our calls, and vLLM's processes, which refuse.
    sender = NcclSender(torch.device("cpu"))
    refusal = r"FAILED_PRECONDITION: vLLM did not join the NCCL group: .*NCCL needs engine vllm on GPUs"
    with pytest.raises(ServiceError, match=refusal) as caught:
        sender.send(packed, weights, {service.control: 1})
    sender.close()
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert held(service.control) == (1, sha256)
    sample = answer(service.main)
    assert [span.weight_version for span in sample.version_spans] == [1]

    # A broadcast of a group that it is not in does not begin.
    header = weights_pb2.BroadcastHeader(
        weights=weights_pb2.WeightHeader(version=2, size=len(packed.blob), sha256=packed.sha256),
        master_address="127.0.0.1",
        master_port=5000,
        tensors=[weights_pb2.BroadcastTensor(name="x", dtype=types_pb2.DATA_TYPE_FLOAT32, shape=[1])],
    )
    with connect(service.control) as channel:
        stub = weights_pb2_grpc.WeightServiceStub(channel)
        answers = stub.ReceiveBroadcast(iter([weights_pb2.ReceiveBroadcastRequest(header=header)]), timeout=SECONDS)
        with pytest.raises(grpc.RpcError) as refused:
            next(answers)
    assert refused.value.code() is grpc.StatusCode.ABORTED
    send_packed(service.control, packed, service="policy", force=False)
    assert held(service.control) == (2, packed.sha256)
    assert [span.weight_version for span in answer(service.main).version_spans] == [2]


def test_an_adapter_is_served_and_one_that_cannot_be_prepared_leaves_the_service_as_it_was(
    room: PolicyRoom,
    service: Addresses,
    real_model: Path,
    weights: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(room.engine, VllmEngine)
    base = pack_weights(weights, 3)
    send_packed(service.control, base, service="policy", force=False)
    before = answer(service.main)

    layer = "model.layers.7.mlp.down_proj"
    outputs, inputs = weights[f"{layer}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    adapter = {
        f"{layer}.lora_A.weight": torch.randn(4, inputs, generator=generator) / 4,
        f"{layer}.lora_B.weight": torch.randn(outputs, 4, generator=generator) / 4,
    }
    checked = room.engine._checked

    def checked_then_gone(path: Path) -> str:
        file = checked(path)
        path.unlink()
        return file

    packed = pack_adapter(adapter, 4, base)
    with monkeypatch.context() as patch:
        patch.setattr(room.engine, "_checked", checked_then_gone)
        with pytest.raises(ServiceError, match="answered INTERNAL"):
            send_packed(service.control, packed, service="policy", force=False)
    assert held(service.control) == (3, base.sha256)
    assert health(service.health, "charter.v1.PolicyService") == health_pb2.HealthCheckResponse.SERVING
    after = answer(service.main)
    assert after.token_ids == before.token_ids
    assert from_tensor(after.logprobs) == pytest.approx(from_tensor(before.logprobs), abs=1e-5)

    send_packed(service.control, packed, service="policy", force=False)
    sample = answer(service.main)
    assert [span.weight_version for span in sample.version_spans] == [4]
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    with torch.no_grad():
        # Rounded as the kept weights are.
        product = (adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]).double()
        changed = (weights[f"{layer}.weight"].double() + product).to(weights[f"{layer}.weight"].dtype)
        model.get_parameter(f"{layer}.weight").copy_(changed)
        rows = model(torch.tensor([[*sample.prompt_token_ids, *sample.token_ids]])).logits[0].double().log_softmax(-1)
    start = len(sample.prompt_token_ids)
    expected = [float(rows[start + place - 1, token]) for place, token in enumerate(sample.token_ids)]
    assert from_tensor(sample.logprobs) == pytest.approx(expected, abs=2e-3)


def test_a_client_that_leaves_takes_its_requests_out_of_vllm(room: PolicyRoom, service: Addresses) -> None:
    assert isinstance(room.engine, VllmEngine)
    with generating(service.main, 1500, samples=4) as responses:
        assert next(responses).text_so_far
        assert room.engine._llm.get_num_unfinished_requests() == 4
    while room.engine._llm.get_num_unfinished_requests() > 0:
        pass
    assert answer(service.main).token_ids


def test_a_prefix_cache_that_is_kept_fails_the_update_and_all_that_follows(
    room: PolicyRoom, service: Addresses, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last in this file: the engine is of no use afterwards. vLLM keeps the cache while requests hold blocks of it."""
    assert isinstance(room.engine, VllmEngine)
    before = held(service.control)
    reset = room.engine._llm.reset_prefix_cache
    answers: list[bool] = []

    async def while_requests_run(reset_running_requests: bool = False) -> bool:
        answers.append(await reset(reset_running_requests=False))
        return answers[-1]

    monkeypatch.setattr(room.engine._llm, "reset_prefix_cache", while_requests_run)
    with generating(service.main, 1500, samples=4) as under_way:
        assert next(under_way).text_so_far
        with pytest.raises(ServiceError, match="answered INTERNAL"):
            send_packed(service.control, pack_weights(weights, 5), service="policy", force=False)
        assert answers == [False], "vLLM itself said that it kept the cache"
        # Neither what was under way nor anything new is served from it.
        with pytest.raises(grpc.RpcError) as caught:
            list(under_way)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    with pytest.raises(grpc.RpcError) as caught:
        answer(service.main)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert held(service.control) == before
    with pytest.raises(ServiceError, match="answered INTERNAL"):
        send_packed(service.control, pack_weights(weights, 5), service="policy", force=False)

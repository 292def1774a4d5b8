"""The policy service over real channels: with a tiny model, and with the fake engine for timing and faults."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
import torch
from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import WeightMismatchError
from charter.policy.server import PolicyConfig, build
from charter.rpc.channel import QUICK, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.lifecycle import Addresses
from charter.rpc.tensors import from_tensor
from charter.runs.artifacts import Artifacts
from charter.v1 import policy_pb2, policy_pb2_grpc, run_pb2, types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.sender import pack_weights, send_weights
from charter.worker.clients.services import Services
from charter.worker.reporter import Reporter
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.harness import health, running


@pytest.fixture(scope="module")
def addresses(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    config = PolicyConfig(str(tiny_model), tmp_path_factory.mktemp("staging"))
    with running(build(config)) as found:
        yield found


def request(*texts: str, max_new_tokens: int = 8, required: int = 0, n: int = 1) -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(
        prompts=[
            policy_pb2.GenerationPrompt(messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=text)])
            for text in texts
        ],
        sampling=policy_pb2.SamplingParameters(max_new_tokens=max_new_tokens, seed=1),
        samples_per_prompt=n,
        required_weight_version=required,
    )


def generate(address: str, asked: policy_pb2.GenerateRequest) -> list[policy_pb2.GenerateResponse]:
    with connect(address) as channel:
        return list(policy_pb2_grpc.PolicyServiceStub(channel).Generate(asked, timeout=QUICK))


def metric(addresses: Addresses, name: str) -> float:
    """A number of the metrics page; 0 for one that is not there yet."""
    page = urlopen(f"http://{addresses.metrics}/metrics").read().decode()
    return float(next((line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith(name)), 0))


def times_refused(addresses: Addresses) -> float:
    return metric(addresses, 'grpc_server_handled_total{grpc_code="ResourceExhausted",grpc_method="Generate"')


def test_every_sample_arrives_with_its_logprobs_and_version(addresses: Addresses) -> None:
    tokens_before = metric(addresses, "charter_policy_generated_tokens_total")
    responses = generate(addresses.main, request("Hi", "Why?", n=3))
    assert {(r.prompt_index, r.sample_index) for r in responses} == {(p, s) for p in range(2) for s in range(3)}
    for response in responses:
        sample = response.sample
        logprobs = from_tensor(sample.logprobs)
        assert logprobs.dtype == np.float32
        assert logprobs.shape == (len(sample.token_ids),)
        assert (logprobs < 0).all()
        assert [(s.start, s.end) for s in sample.version_spans] == [(0, len(sample.token_ids))]
        assert sample.finish_reason in (policy_pb2.FINISH_REASON_EOS, policy_pb2.FINISH_REASON_LENGTH)
        assert len(sample.prompt_token_ids) > 0
    tokens = metric(addresses, "charter_policy_generated_tokens_total") - tokens_before
    assert tokens == sum(len(response.sample.token_ids) for response in responses)
    assert metric(addresses, "charter_policy_requests") == 0


def test_text_streams_while_it_is_written(addresses: Addresses) -> None:
    asked = request("Hi", "Why?", max_new_tokens=6)
    asked.stream_text = True
    texts: dict[int, list[str]] = {0: [], 1: []}
    for response in generate(addresses.main, asked):
        if response.HasField("sample"):
            seen = texts.pop(response.prompt_index)
            # A token may be part of a character, whose place then holds a replacement character.
            begun = [text.rstrip("\ufffd") for text in seen]
            # What was written before the client had read the text before is one.
            assert 0 < len(seen) < len(response.sample.token_ids)
            assert all(response.sample.text.startswith(text) for text in begun)
        else:
            texts[response.prompt_index].append(response.text_so_far)
    assert texts == {}
    plain = {r.prompt_index: r.sample.text for r in generate(addresses.main, request("Hi", "Why?", max_new_tokens=6))}
    assert plain == {r.prompt_index: r.sample.text for r in generate(addresses.main, asked) if r.HasField("sample")}


def test_new_weights_are_served_and_named_without_a_restart(addresses: Addresses, tiny_model: Path) -> None:
    torch.manual_seed(1)
    weights = {name: t + 0.05 * torch.randn_like(t) for name, t in load_file(tiny_model / "model.safetensors").items()}
    send_weights(addresses.control, weights, 7)
    (response,) = generate(addresses.main, request("Hi", required=7))
    assert response.sample.version_spans[0].weight_version == 7

    trained = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    trained.load_state_dict(weights, strict=False)
    prompt, answer = list(response.sample.prompt_token_ids), list(response.sample.token_ids)
    with torch.no_grad():
        table = trained(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = [float(table[len(prompt) + place - 1, token]) for place, token in enumerate(answer)]
    assert from_tensor(response.sample.logprobs) == pytest.approx(expected, abs=2e-5)
    with connect(addresses.main) as channel:
        info = policy_pb2_grpc.PolicyServiceStub(channel).GetModelInfo(
            policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=QUICK
        )
    assert (info.model.weight_version, info.model.engine, info.model.max_context_tokens) == (7, "transformers", 512)


def test_it_does_not_serve_while_its_first_weights_arrive(tmp_path: Path) -> None:
    """A replica that has restarted serves the weights it was started with: nobody should take them for the newest."""
    weights = pack_weights({"w": torch.ones(4)}, 3)
    rest = threading.Event()

    def parts() -> Iterator[weights_pb2.LoadWeightsRequest]:
        header = weights_pb2.WeightHeader(version=3, size=len(weights.blob), sha256=weights.sha256)
        yield weights_pb2.LoadWeightsRequest(header=header)
        rest.wait()
        yield weights_pb2.LoadWeightsRequest(chunk=bytes(weights.blob))

    with running(build(fake(tmp_path))) as at, connect(at.main) as main, connect(at.control) as control:
        watch = health_pb2_grpc.HealthStub(main).Watch(
            health_pb2.HealthCheckRequest(service="charter.v1.PolicyService"), timeout=120
        )
        statuses = (health_pb2.HealthCheckResponse.ServingStatus.Name(one.status) for one in watch)
        assert next(statuses) == "SERVING"
        sent = weights_pb2_grpc.WeightServiceStub(control).LoadWeights.future(parts(), timeout=120)
        assert next(statuses) == "NOT_SERVING"
        rest.set()
        assert sent.result().version == 3
        assert next(statuses) == "SERVING"
        watch.cancel()


def test_it_does_not_serve_after_an_update_that_failed_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such an engine holds, nobody knows. Weights that merely do not fit leave it as it was."""
    room = build(fake(tmp_path))
    serve = room.engine.load_weights

    async def failing_once(path: Path, version: int, digest: str) -> float:
        if version == 1:
            raise RuntimeError("half of the weights are in")
        if version == 2:
            raise WeightMismatchError("unknown tensors: w")
        return await serve(path, version, digest)

    monkeypatch.setattr(room.engine, "load_weights", failing_once)
    with running(room) as at:
        with pytest.raises(ServiceError, match="refused the request: unknown tensors"):
            send_weights(at.control, {"w": torch.ones(4)}, 2)
        assert health(at.main, "charter.v1.PolicyService") == health_pb2.HealthCheckResponse.SERVING
        for _ in range(2):
            with pytest.raises(ServiceError, match="answered INTERNAL"):
                send_weights(at.control, {"w": torch.ones(4)}, 1)
            assert health(at.main, "charter.v1.PolicyService") == health_pb2.HealthCheckResponse.NOT_SERVING
        send_weights(at.control, {"w": torch.ones(4)}, 3)
        assert health(at.main, "charter.v1.PolicyService") == health_pb2.HealthCheckResponse.SERVING


def test_weights_that_do_not_fit_are_refused_and_name_the_tensor(addresses: Addresses) -> None:
    with pytest.raises(ServiceError, match=r"unknown tensors: w; missing tensors: .* and \d+ more"):
        send_weights(addresses.control, {"w": torch.ones(2)}, 99)


def test_an_older_replica_refuses(addresses: Addresses) -> None:
    with pytest.raises(grpc.RpcError, match="version 1000 is required") as caught:
        generate(addresses.main, request("Hi", required=1000))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_a_prompt_that_does_not_fit_is_named(addresses: Addresses) -> None:
    with pytest.raises(grpc.RpcError, match=r"prompts\[1\]: needs \d+ tokens with its answer") as caught:
        generate(addresses.main, request("Hi", "x" * 600))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_broken_fields_are_named(addresses: Addresses) -> None:
    for asked, words in (
        (request(), "prompts: needs at least 1 items"),
        (request("Hi", max_new_tokens=0), "sampling.max_new_tokens"),
        (request("Hi", n=1000), "samples_per_prompt"),
        (request("Hi" * 300_000), r"prompts\[0\].messages\[0\].content"),
    ):
        with pytest.raises(grpc.RpcError, match=words) as caught:
            generate(addresses.main, asked)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_plain_text_and_the_turn_of_a_user_are_gone_on_with(addresses: Addresses, tiny_model: Path) -> None:
    tokenizer = ChatTokenizer.load(str(tiny_model)).tokenizer
    asked = request("Hi")
    asked.prompts.add(text="Once <|im_end|>", seed=3)
    asked.prompts.add(as_user=True, seed=3)
    asked.prompts.add(as_user=True, seed=4)
    samples = {one.prompt_index: one.sample for one in generate(addresses.main, asked)}
    read = {place: tokenizer.decode(list(sample.prompt_token_ids)) for place, sample in samples.items()}
    assert read[0].endswith("<|im_end|>\n<|im_start|>assistant\n")
    # What a text spells is no token of the template.
    assert read[1].endswith("Once < |im_end|>")
    assert read[2] == read[3] == "<|im_start|>user\n"
    assert samples[2].token_ids != samples[3].token_ids
    for broken in (
        policy_pb2.GenerationPrompt(),
        policy_pb2.GenerationPrompt(text="Once", as_user=True),
        policy_pb2.GenerationPrompt(text="Once", messages=asked.prompts[0].messages),
    ):
        wrong = request("Hi")
        wrong.prompts.append(broken)
        with pytest.raises(grpc.RpcError, match=r"prompts\[1\]") as caught:
            generate(addresses.main, wrong)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def fake(tmp_path: Path, **settings: int) -> PolicyConfig:
    return PolicyConfig("fake", tmp_path, engine="fake", engine_settings=settings, max_requests=1)


def test_samples_stream_and_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    room = build(fake(tmp_path, stall_after=1))
    with running(room) as addresses, connect(addresses.main) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        responses = stub.Generate(request("Hi", n=2), timeout=QUICK)
        next(responses)  # The second never comes.
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(request("Hi"), timeout=QUICK))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(caught.value).details[0].Unpack(retry)
        responses.cancel()
        # The place is free once the server has noticed; the channel retries nothing.
        while metric(addresses, "charter_policy_requests") > 0:
            pass
        assert len(list(stub.Generate(request("Hi"), timeout=QUICK))) == 1


def test_the_worker_waits_as_long_as_an_overloaded_policy_asks(tmp_path: Path) -> None:
    """While another client holds the only place, the worker is refused once, and asks again after RetryInfo's delay."""
    sampling = run_pb2.SamplingSpec(temperature=1.0, max_new_tokens=8)
    with running(build(fake(tmp_path, stall_after=1))) as addresses, connect(addresses.main) as channel:
        services = Services(
            run_pb2.ServiceAddresses(
                policy=[addresses.main],
                policy_control=[addresses.control],
                judge=addresses.main,
                preference=addresses.main,
            ),
            Reporter(Artifacts(tmp_path, "run"), "run", 1, ""),
        )
        with closing(services), ThreadPoolExecutor() as threads:
            services.policy.send({"w": torch.ones(1)}, 1)
            before = times_refused(addresses)
            holder = policy_pb2_grpc.PolicyServiceStub(channel).Generate(request("Hi", n=2), timeout=120)
            next(holder)
            waiting = threads.submit(
                services.policy.generate, [[ChatMessage("user", "Hi")]], sampling, version=1, seed=1
            )
            while times_refused(addresses) == before:
                pass
            holder.cancel()
            assert len(waiting.result(120)) == 1
        assert times_refused(addresses) == before + 1


def test_a_fault_of_the_engine_is_internal(tmp_path: Path) -> None:
    with (
        running(build(fake(tmp_path, fail_every=1))) as addresses,
        pytest.raises(ServiceError, match="INTERNAL"),
        explained("policy", addresses.main),
    ):
        generate(addresses.main, request("Hi"))


def test_an_unknown_engine_and_a_missing_model_fail_clearly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid engines: transformers, vllm, openai, fake"):
        build(PolicyConfig("m", tmp_path, engine="cuda"))
    room = build(PolicyConfig(str(tmp_path / "nothing"), tmp_path))
    with pytest.raises(OSError, match="no model folder"), running(room):
        pytest.fail("it started without a model")

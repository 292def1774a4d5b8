"""Life cycle, health, statuses and weight transfer of a real service over real channels."""

import asyncio
import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
import torch
from charter.inference.engine import EngineInfo, WeightMismatchError
from charter.rpc.channel import QUICK, connect
from charter.rpc.errors import ServiceError, StatusError, explained
from charter.rpc.lifecycle import Addresses, Listen, PortTakenError, serve, serving
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.receiver import WeightServicer, model_info
from charter.weights.sender import send_weights
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from safetensors.torch import load_file

from tests.support.harness import health, running

POLICY = "charter.v1.PolicyService"


class Target:
    """Holds the last weights; accepts exactly one tensor named w."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.version = 0
        self.digest = ""

    def info(self) -> EngineInfo:
        return EngineInfo("toy", "toy", self.version, self.digest, 1, 16)

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        tensors = load_file(path)
        if set(tensors) != {"w"}:
            raise WeightMismatchError(f"expected the tensor w, got {sorted(tensors)}")
        self.tensors, self.version, self.digest = tensors, version, digest
        return 0.0


class ToyService(policy_pb2_grpc.PolicyServiceServicer):
    """The smallest service that has every kind of call; prompts choose what it does."""

    name = "policy"
    health_names = (POLICY,)
    control_names = ("charter.v1.WeightService",)

    def __init__(self, staging: Path) -> None:
        self.target = Target()
        self.weights = WeightServicer(self.target, staging, "policy")
        self.loading = threading.Event()
        self.loaded = threading.Event()
        self.loaded.set()
        self.release = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)

    def register_control(self, server: grpc.aio.Server) -> None:
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self.weights, server)

    async def Score(
        self, request: policy_pb2.PolicyServiceScoreRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.PolicyServiceScoreResponse]:
        for index in range(len(request.prompts)):
            yield policy_pb2.PolicyServiceScoreResponse(prompt_index=index)

    async def start(self) -> None:
        self.loading.set()
        await asyncio.to_thread(self.loaded.wait)

    async def stop(self) -> None:
        pass

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        match request.prompts[0].messages[0].content:
            case "busy":
                raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", retry_after_seconds=2.5)
            case "bug":
                raise KeyError("secret")
            case "slow":
                yield policy_pb2.GenerateResponse(prompt_index=0)
                await asyncio.sleep(0.2)
        yield policy_pb2.GenerateResponse(prompt_index=1)

    async def GetModelInfo(
        self, request: policy_pb2.PolicyServiceGetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> policy_pb2.PolicyServiceGetModelInfoResponse:
        return policy_pb2.PolicyServiceGetModelInfoResponse(model=model_info(self.target.info()))


@pytest.fixture
def toy(tmp_path: Path) -> ToyService:
    return ToyService(tmp_path)


@pytest.fixture
def addresses(toy: ToyService) -> Iterator[Addresses]:
    with running(toy) as found:
        yield found


def request(content: str) -> policy_pb2.GenerateRequest:
    message = types_pb2.Message(role=types_pb2.ROLE_USER, content=content)
    return policy_pb2.GenerateRequest(
        prompts=[policy_pb2.GenerationPrompt(messages=[message])],
        sampling=policy_pb2.SamplingParameters(max_new_tokens=1),
    )


def generate(address: str, content: str) -> list[policy_pb2.GenerateResponse]:
    with connect(address) as channel:
        return list(policy_pb2_grpc.PolicyServiceStub(channel).Generate(request(content), timeout=QUICK))


def test_health_and_reflection(addresses: Addresses) -> None:
    assert health(addresses.main, "") == health_pb2.HealthCheckResponse.SERVING
    assert health(addresses.main, POLICY) == health_pb2.HealthCheckResponse.SERVING
    with connect(addresses.main) as channel:
        assert POLICY in ProtoReflectionDescriptorDatabase(channel).get_services()
    with connect(addresses.control) as channel:
        assert "charter.v1.WeightService" in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_not_serving_while_the_model_loads(toy: ToyService) -> None:
    async def main() -> None:
        toy.loaded.clear()
        entered = asyncio.create_task(_enter(toy))
        await asyncio.to_thread(toy.loading.wait)
        toy.loaded.set()
        await entered

    async def _enter(service: ToyService) -> None:
        async with serving(service, Listen(), drain_seconds=0):
            pass

    port: list[str] = []
    original = toy.start

    async def start() -> None:
        # Probed from inside start, when the port is bound and the model is not loaded.
        statuses = await asyncio.gather(
            asyncio.to_thread(health, port_of(toy), ""), asyncio.to_thread(health, port_of(toy), POLICY)
        )
        port.extend(str(status) for status in statuses)
        await original()

    bound: list[str] = []

    def port_of(_service: ToyService) -> str:
        return bound[0]

    register = toy.register

    def remember(server: grpc.aio.Server) -> None:
        register(server)
        # A second port on the same server, whose number the test knows.
        bound.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")

    toy.start = start  # type: ignore[method-assign]
    toy.register = remember  # type: ignore[method-assign]
    asyncio.run(main())
    assert port == [
        str(int(health_pb2.HealthCheckResponse.SERVING)),
        str(int(health_pb2.HealthCheckResponse.NOT_SERVING)),
    ]


def test_a_broken_constraint_names_the_field(addresses: Addresses) -> None:
    with connect(addresses.main) as channel, pytest.raises(grpc.RpcError) as caught:
        list(policy_pb2_grpc.PolicyServiceStub(channel).Generate(policy_pb2.GenerateRequest(), timeout=QUICK))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "prompts: needs at least 1 items" in str(caught.value.details())
    bad = error_details_pb2.BadRequest()
    assert rpc_status.from_call(caught.value).details[0].Unpack(bad)
    assert [violation.field for violation in bad.field_violations] == ["prompts", "sampling"]


def test_a_status_error_carries_its_retry_delay(addresses: Addresses) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        generate(addresses.main, "busy")
    retry = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(caught.value).details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_a_bug_is_internal_and_says_nothing_of_the_inside(addresses: Addresses) -> None:
    with (
        pytest.raises(ServiceError, match=r"policy service at .* answered INTERNAL") as caught,
        explained("policy", addresses.main),
    ):
        generate(addresses.main, "bug")
    assert "secret" not in str(caught.value)


def test_calls_are_counted_by_code(addresses: Addresses) -> None:
    generate(addresses.main, "hello")
    with pytest.raises(grpc.RpcError):
        generate(addresses.main, "busy")
    page = urlopen(f"http://{addresses.metrics}/metrics").read().decode()
    labels = 'grpc_method="Generate",grpc_service="charter.v1.PolicyService",grpc_type="server_stream"'
    for code in ("OK", "ResourceExhausted"):
        line = f'grpc_server_handled_total{{grpc_code="{code}",{labels}}}'
        assert float(page.split(line)[1].split()[0]) >= 1
    failed = 'charter_calls_failed_total{grpc_method="Generate",grpc_service="charter.v1.PolicyService"}'
    before = float(page.split(failed)[1].split()[0])
    assert before >= 1
    # The caller's mistake is none of the service's.
    with connect(addresses.main) as channel, pytest.raises(grpc.RpcError):
        list(policy_pb2_grpc.PolicyServiceStub(channel).Generate(policy_pb2.GenerateRequest(), timeout=QUICK))
    page = urlopen(f"http://{addresses.metrics}/metrics").read().decode()
    assert f'grpc_server_handled_total{{grpc_code="InvalidArgument",{labels}}}' in page
    assert float(page.split(failed)[1].split()[0]) == before
    # Pre-registered, though nobody has called it.
    assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="LoadWeights"' in page


def test_an_unreachable_service_says_where_and_what_to_do() -> None:
    with (
        pytest.raises(ServiceError, match=r"policy service at 127.0.0.1:1 cannot be reached.*charter up"),
        explained("policy", "127.0.0.1:1"),
    ):
        generate("127.0.0.1:1", "hello")


def test_a_taken_port_fails_at_once(addresses: Addresses, tmp_path: Path) -> None:
    host, port = addresses.main.split(":")

    async def second() -> None:
        async with serving(ToyService(tmp_path), Listen(host=host, port=int(port))):
            pytest.fail("two servers share a port")

    with pytest.raises(PortTakenError, match=f"cannot listen on {addresses.main}"):
        asyncio.run(second())


def test_a_taken_metrics_port_fails_at_once(addresses: Addresses, tmp_path: Path) -> None:
    host, port = addresses.metrics.split(":")

    async def second() -> None:
        async with serving(ToyService(tmp_path), Listen(host=host, metrics_port=int(port))):
            pytest.fail("two servers share a port")

    with pytest.raises(PortTakenError, match="cannot serve metrics on"):
        asyncio.run(second())


def test_sigterm_lets_a_call_under_way_finish(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.integration.rpc.test_rpc import ToyService, announce\n"
        f"asyncio.run(announce(ToyService(Path({str(tmp_path)!r}))))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with connect(address) as channel:
            responses = policy_pb2_grpc.PolicyServiceStub(channel).Generate(request("slow"), timeout=QUICK)
            assert next(responses).prompt_index == 0
            process.send_signal(signal.SIGTERM)
            assert [response.prompt_index for response in responses] == [1]
        assert process.wait(20) == 0


async def announce(service: ToyService) -> None:
    """Body of the process in the test above: serve, and print the address once it serves."""
    register = service.register

    def remember(server: grpc.aio.Server) -> None:
        register(server)
        print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)  # noqa: T201

    service.register = remember  # type: ignore[method-assign]
    await serve(service, Listen())


def test_weights_arrive_whole_and_are_served(toy: ToyService, addresses: Addresses, tmp_path: Path) -> None:
    weights = torch.arange(600_000, dtype=torch.float32)
    update = send_weights(addresses.control, {"w": weights}, 3)
    assert torch.equal(toy.target.tensors["w"], weights)
    assert (toy.target.version, toy.target.digest) == (3, update.sha256)
    assert list(tmp_path.iterdir()) == [], "the staged file is removed"
    with connect(addresses.control) as channel:
        stub = weights_pb2_grpc.WeightServiceStub(channel)
        served = stub.GetWeightVersion(weights_pb2.GetWeightVersionRequest(), timeout=QUICK).model
    assert (served.weight_version, served.weight_digest) == (3, update.sha256)


def test_an_older_version_is_refused_unless_forced(toy: ToyService, addresses: Addresses) -> None:
    send_weights(addresses.control, {"w": torch.ones(2)}, 3)
    with pytest.raises(ServiceError, match="version 2 is not newer than the served version 3"):
        send_weights(addresses.control, {"w": torch.zeros(2)}, 2)
    assert toy.target.version == 3
    send_weights(addresses.control, {"w": torch.zeros(2)}, 2, force=True)
    assert toy.target.version == 2


def test_weights_that_do_not_fit_change_nothing(toy: ToyService, addresses: Addresses) -> None:
    send_weights(addresses.control, {"w": torch.ones(2)}, 1)
    with pytest.raises(ServiceError, match="expected the tensor w, got"):
        send_weights(addresses.control, {"v": torch.ones(2)}, 2)
    assert toy.target.version == 1


def parts(
    size: int, sha256: str, *chunks: bytes, header_first: bool = True
) -> Iterator[weights_pb2.LoadWeightsRequest]:
    header = weights_pb2.WeightHeader(version=9, size=size, sha256=sha256)
    if header_first:
        yield weights_pb2.LoadWeightsRequest(header=header)
    for chunk in chunks:
        yield weights_pb2.LoadWeightsRequest(chunk=chunk)


SHA = hashlib.sha256(b"12345678").hexdigest()


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (parts(8, SHA, b"1234"), grpc.StatusCode.DATA_LOSS, "4 of 8 bytes"),
        (parts(8, SHA, b"12345678", b"9"), grpc.StatusCode.DATA_LOSS, "more than the announced 8 bytes"),
        (parts(8, SHA, b"1234567x"), grpc.StatusCode.DATA_LOSS, "sha256"),
        (parts(8, SHA, b"12345678", header_first=False), grpc.StatusCode.INVALID_ARGUMENT, "must be its header"),
        (parts(8, "no digest", b"12345678"), grpc.StatusCode.INVALID_ARGUMENT, "header.sha256"),
    ],
)
def test_a_broken_transfer_changes_nothing(
    toy: ToyService,
    addresses: Addresses,
    sent: Iterator[weights_pb2.LoadWeightsRequest],
    code: grpc.StatusCode,
    words: str,
) -> None:
    with connect(addresses.control) as channel, pytest.raises(grpc.RpcError) as caught:
        weights_pb2_grpc.WeightServiceStub(channel).LoadWeights(sent, timeout=QUICK)
    assert caught.value.code() == code
    assert words in str(caught.value.details())
    assert toy.target.version == 0

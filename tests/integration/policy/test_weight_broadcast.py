"""Weights by broadcast, over real gRPC channels: everything but NCCL itself, for which gloo stands in.

The worker's side is vLLM's own ``NCCLTrainerWeightTransferEngine``; the replicas' engines are fake ones that really
take part in the broadcasts.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from charter.inference.engine import WeightMismatchError
from charter.inference.fake import FakeEngine
from charter.inference.vllm.nccl import BroadcastTensor, CannotJoinError, NcclGroup
from charter.policy.server import PolicyConfig, build
from charter.rpc.channel import connect
from charter.rpc.errors import ServiceError
from charter.rpc.lifecycle import Addresses
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2, types_pb2, weights_pb2, weights_pb2_grpc
from charter.weights import nccl_sender
from charter.weights.sender import pack_weights
from charter.worker.errors import RunError, SpecError
from charter.worker.stages.start import check_spec
from safetensors.torch import save_file
from torch import Tensor

from tests.integration.policy.test_weight_planes import Client, held
from tests.support.harness import running
from tests.support.ports import free_ports

vllm = pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")

# Typed so far that it hides what it does not export.
c10d: Any = torch.distributed

SECONDS = 60.0
TENSORS = {
    "b": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a": torch.arange(5, dtype=torch.bfloat16),
    "scalar": torch.tensor(7.0),
}


def member(host: str, port: int, rank: int, size: int) -> Any:
    """One rank of a group; returns when all have met."""
    store = c10d.TCPStore(host, port, size, is_master=rank == 0, timeout=timedelta(seconds=SECONDS))
    return c10d.ProcessGroupGloo(c10d.PrefixStore("weights", store), rank, size, timedelta(seconds=SECONDS))


class BroadcastEngine(FakeEngine):
    """A fake engine with so many ranks, which keeps what its last one received."""

    def __init__(self, folder: Path, ranks: int) -> None:
        super().__init__()
        self._file = folder / f"{id(self)}.safetensors"
        self._ranks = ranks
        self._group: NcclGroup | None = None
        self._members: list[Any] = []
        self.first_rank = 0
        self.received: dict[str, Tensor] = {}
        self.joined = 0
        self.breaks = False

    def nccl_ranks(self) -> int:
        return self._ranks

    def nccl_group(self) -> NcclGroup | None:
        return self._group

    def forget_group(self) -> None:
        """As a restart does."""
        self._group = None

    async def join_group(self, group: NcclGroup, first_rank: int) -> None:
        if self._ranks > 2:
            raise CannotJoinError("there are too many of me")
        self._group, self.first_rank, self.joined = None, first_rank, self.joined + 1
        place = (group.master_address, group.master_port)
        self._members = await asyncio.gather(
            *(asyncio.to_thread(member, *place, first_rank + number, group.world_size) for number in range(self._ranks))
        )
        self._group = group

    def check_broadcast(self, tensors: Sequence[BroadcastTensor]) -> None:
        if [tensor.name for tensor in tensors] != list(TENSORS):
            raise WeightMismatchError(f"unknown tensors: {[tensor.name for tensor in tensors]}")

    async def receive_broadcast(self, tensors: Sequence[BroadcastTensor], version: int, digest: str) -> float:
        def receive(group: Any) -> dict[str, Tensor]:
            found = {}
            for tensor in tensors:
                found[tensor.name] = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
                group.broadcast(found[tensor.name], 0).wait()
            return found

        if self.breaks:
            raise RuntimeError("lost")
        for found in await asyncio.gather(*(asyncio.to_thread(receive, group) for group in self._members)):
            self.received = found
        save_file(self.received, self._file)
        return await self.load_weights(self._file, version, digest)


class GlooCommunicator:
    """Rank 0 as vLLM's trainer side uses it."""

    available = True

    def __init__(self, group: Any) -> None:
        self._group = group

    def broadcast(self, tensor: Tensor, src: int, stream: None) -> None:
        self._group.broadcast(tensor, src).wait()

    def destroy(self) -> None:
        self.available = False


def join_by_gloo(members: nccl_sender._Members, source: nccl_sender._Tensors) -> object:
    """``_join`` with gloo in place of NCCL."""
    (port,) = free_ports(1)
    engine = vllm.NCCLTrainerWeightTransferEngine(client=members, source=source, packed=False)
    meeting = threading.Thread(
        target=members.init_weight_transfer_engine, args=({"master_address": "127.0.0.1", "master_port": port},)
    )
    meeting.start()
    engine.model_update_group = GlooCommunicator(member("127.0.0.1", port, 0, members.world_size))
    meeting.join(SECONDS)
    return engine


@dataclass
class Stage:
    """Replicas with these engines, and the worker's client of them."""

    engines: list[BroadcastEngine]
    replicas: list[Addresses]
    client: Client

    def send(self, version: int, tensors: dict[str, Tensor]) -> str:
        """Send a version; its digest."""
        self.client.services.policy.send(tensors, version)
        self.client.until_ready(len(self.replicas))
        return pack_weights(tensors, version).sha256

    def assert_held(self, version: int, sha256: str) -> None:
        assert [held(one.control) for one in self.replicas] == [(version, sha256)] * len(self.replicas)


Build = Callable[..., Stage]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """Makes the stage for replicas with so many ranks each."""
    monkeypatch.setattr(nccl_sender, "_join", join_by_gloo)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    with ExitStack() as stack:

        def make(*ranks: int) -> Stage:
            engines = [BroadcastEngine(tmp_path, count) for count in ranks]
            replicas = []
            for number, engine in enumerate(engines):
                with monkeypatch.context() as patch:
                    patch.setattr("charter.policy.server.create_engine", lambda name, model, engine=engine: engine)
                    room = build(PolicyConfig("fake", tmp_path / f"staging-{number}", "fake"))
                replicas.append(stack.enter_context(running(room)))
            client = Client(tmp_path, [(one.main, one.control) for one in replicas], weights_nccl=True)
            return Stage(engines, replicas, stack.enter_context(client))

        yield make


def versions(count: int) -> list[dict[str, Tensor]]:
    return [{name: tensor + number for name, tensor in TENSORS.items()} for number in range(count)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_spec_that_asks_for_nccl_in_vain_is_refused_before_anything_is_loaded() -> None:
    spec = fill_defaults(run_pb2.RunSpec(services=run_pb2.ServiceAddresses(weights_nccl=True)))
    with pytest.raises(SpecError, match=r"weights from the worker's GPU, and the worker sees none\. Leave it out, and"):
        check_spec(spec)
    spec.services.gpu_sharing = run_pb2.GPU_SHARING_SERVERS_SLEEP
    with pytest.raises(SpecError, match=r"services\.gpu_sharing for one GPU: leave one out"):
        check_spec(spec)
    spec.ppo.lora_rank = 4
    with pytest.raises(SpecError, match=r"with ppo\.lora_rank only adapters travel: leave one out"):
        check_spec(spec)


def test_ranks_follow_each_other_without_gaps() -> None:
    assert nccl_sender.first_ranks({"a": 1, "b": 4, "c": 2}) == ({"a": 1, "b": 2, "c": 6}, 8)
    assert nccl_sender.first_ranks({"a": 1}) == ({"a": 1}, 2)


def test_new_versions_are_broadcast_to_all_and_nobody_is_sent_bytes(stage: Build) -> None:
    stand = stage(1, 2)
    first, second, third = versions(3)
    # Nobody holds anything yet: the first version goes as always.
    stand.assert_held(1, stand.send(1, first))
    assert [engine.received for engine in stand.engines] == [{}, {}]
    for version, tensors in ((2, second), (3, third)):
        stand.assert_held(version, stand.send(version, tensors))
        for engine in stand.engines:
            assert list(engine.received) == list(TENSORS)
            for name, tensor in tensors.items():
                assert engine.received[name].dtype == tensor.dtype
                assert torch.equal(engine.received[name], tensor)
    # One group for both versions, in which the second replica has two ranks.
    assert [(engine.joined, engine.first_rank) for engine in stand.engines] == [(1, 1), (1, 2)]
    group = stand.engines[0].nccl_group()
    assert group is not None
    assert group.world_size == 4
    # What was kept for adapters and other replicas is not what is served, and is gone.
    for replica in stand.replicas:
        with connect(replica.control) as channel:
            stub = weights_pb2_grpc.WeightServiceStub(channel)
            found = stub.GetWeightVersion(weights_pb2.GetWeightVersionRequest(), timeout=SECONDS)
        assert (found.base_sha256, found.nccl_ranks) == ("", 2 if replica is stand.replicas[1] else 1)


def test_after_a_restart_one_version_goes_without_nccl_and_the_next_by_a_new_group(stage: Build) -> None:
    stand = stage(1, 1)
    first, second, third, fourth = versions(4)
    stand.send(1, first)
    stand.send(2, second)
    stand.engines[1].forget_group()
    stand.assert_held(3, stand.send(3, third))
    assert all(torch.equal(engine.received["b"], second["b"]) for engine in stand.engines)
    stand.assert_held(4, stand.send(4, fourth))
    assert all(torch.equal(engine.received["b"], fourth["b"]) for engine in stand.engines)
    assert [engine.joined for engine in stand.engines] == [2, 2]


def test_a_member_lost_in_the_middle_does_not_stop_the_run(stage: Build) -> None:
    stand = stage(1, 1)
    first, second, third = versions(3)
    stand.send(1, first)
    stand.engines[0].breaks = True
    # It takes the file; vLLM would have to be restarted.
    stand.assert_held(2, stand.send(2, second))
    stand.engines[0].breaks = False
    stand.assert_held(3, stand.send(3, third))
    assert all(torch.equal(engine.received["b"], third["b"]) for engine in stand.engines)


def test_tensors_that_do_not_fit_are_refused_by_all_before_anything_is_broadcast(stage: Build) -> None:
    stand = stage(1, 1)
    (first,) = versions(1)
    sha256 = stand.send(1, first)
    with pytest.raises(ServiceError, match=r"refused the request: unknown tensors: \['other'\]"):
        stand.client.services.policy.send({"other": torch.ones(2)}, 2)
    stand.assert_held(1, sha256)
    assert [engine.received for engine in stand.engines] == [{}, {}]


def test_an_engine_that_cannot_join_or_has_no_nccl_says_so(stage: Build, tmp_path: Path) -> None:
    stand = stage(3)
    request = weights_pb2.JoinGroupRequest(master_address="127.0.0.1", master_port=1, rank_offset=1, world_size=2)
    without = "NCCL needs engine vllm on GPUs; elsewhere leave services.weights_nccl out of the spec"

    def refused(control: str, **changed: object) -> tuple[grpc.StatusCode, str]:
        asked = weights_pb2.JoinGroupRequest()
        asked.CopyFrom(request)
        for name, value in changed.items():
            setattr(asked, name, value)
        with connect(control) as channel, pytest.raises(grpc.RpcError) as caught:
            weights_pb2_grpc.WeightServiceStub(channel).JoinGroup(asked, timeout=SECONDS)
        return caught.value.code(), caught.value.details() or ""

    here = stand.replicas[0].control
    assert refused(here) == (grpc.StatusCode.FAILED_PRECONDITION, f"there are too many of me. {without}")
    with running(build(PolicyConfig("fake", tmp_path / "plain", "fake"))) as plain:
        found = refused(plain.control)
        assert found == (grpc.StatusCode.FAILED_PRECONDITION, f"engine fake has no NCCL. {without}")
        with (
            Client(tmp_path / "other", [(plain.main, plain.control)], weights_nccl=True) as client,
            pytest.raises(RunError, match=r"the policy at .*, engine fake, cannot take weights by NCCL: serve it with"),
        ):
            client.services.policy.check_nccl()
    stand.client.services.policy.check_nccl()
    for field, value in (("rank_offset", 0), ("world_size", 1), ("master_port", 70000), ("master_address", "")):
        code, details = refused(here, **{field: value})
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith(field)


def test_a_broadcast_is_checked_before_it_begins_and_may_be_given_up(stage: Build) -> None:
    stand = stage(1)
    (tensors,) = versions(1)
    sha256 = stand.send(1, tensors)
    here, engine = stand.replicas[0].control, stand.engines[0]
    engine._group = NcclGroup("10.0.0.1", 5000, 2)
    wire = {name: number for number, name in nccl_sender.DTYPES.items()}
    header = weights_pb2.BroadcastHeader(
        weights=weights_pb2.WeightHeader(version=2, size=100, sha256="a" * 64),
        master_address="10.0.0.1",
        master_port=5000,
        tensors=[
            weights_pb2.BroadcastTensor(name=name, dtype=wire[str(one.dtype).split(".")[1]], shape=one.shape)
            for name, one in TENSORS.items()
        ],
    )

    def ask(*requests: weights_pb2.ReceiveBroadcastRequest) -> list[str | None]:
        with connect(here) as channel:
            stub = weights_pb2_grpc.WeightServiceStub(channel)
            answers = stub.ReceiveBroadcast(iter(requests), timeout=SECONDS)
            return [answer.WhichOneof("part") for answer in answers]

    def refused(change: Callable[[weights_pb2.BroadcastHeader], object]) -> tuple[grpc.StatusCode, str]:
        wrong = weights_pb2.BroadcastHeader()
        wrong.CopyFrom(header)
        change(wrong)
        with pytest.raises(grpc.RpcError) as caught:
            ask(weights_pb2.ReceiveBroadcastRequest(header=wrong))
        return caught.value.code(), caught.value.details() or ""

    go = weights_pb2.ReceiveBroadcastRequest(go=True)
    with pytest.raises(grpc.RpcError, match="the first message of a broadcast must be its header"):
        ask(go)
    with pytest.raises(grpc.RpcError, match="after the header only go may follow"):
        ask(*[weights_pb2.ReceiveBroadcastRequest(header=header)] * 2)
    code, details = refused(lambda one: setattr(one, "master_port", 5001))
    assert (code, details) == (grpc.StatusCode.ABORTED, "this engine is not in the NCCL group of 10.0.0.1:5001")
    code, details = refused(lambda one: setattr(one.weights, "version", 1))
    assert (code, details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "version 1 is not newer than the served version 1",
    )
    code, details = refused(lambda one: setattr(one.tensors[0], "dtype", types_pb2.DATA_TYPE_INT64))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    code, details = refused(lambda one: one.tensors[0].shape.append(-1))
    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "header.tensors[0].shape[2]: must be at least 0, is -1",
    )
    # Without go it ends without effect, and the next transfer is let in.
    assert ask(weights_pb2.ReceiveBroadcastRequest(header=header)) == ["accepted"]
    stand.assert_held(1, sha256)
    engine._group = None
    stand.assert_held(2, stand.send(2, tensors))

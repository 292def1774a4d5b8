"""The ways that weights take to replicas: chunks in the call, other replicas, a shared folder; over real channels."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
import torch
from charter.inference.local.packed_linear import PackedLinear
from charter.policy.server import PolicyConfig, PolicyRoom, build
from charter.rpc.channel import connect
from charter.rpc.errors import ServiceError
from charter.rpc.lifecycle import Addresses
from charter.runs.artifacts import Artifacts
from charter.v1 import run_pb2, weights_pb2, weights_pb2_grpc
from charter.weights.receiver import RECEIVED_BYTES
from charter.weights.relay_tree import relays
from charter.weights.sender import PackedWeights, pack_weights, send_packed
from charter.weights.shared_folder import SharedFolder
from charter.weights.staging import CHUNK_BYTES
from charter.worker.clients.services import Services
from charter.worker.errors import RunError
from charter.worker.reporter import Reporter
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.harness import running
from tests.support.processes import Process

SECONDS = 60.0


def fakes(stack: ExitStack, folder: Path, count: int) -> list[Addresses]:
    """Serving replicas of a fake policy in this process."""
    return [
        stack.enter_context(running(build(PolicyConfig("fake", folder / f"staging-{number}", "fake"))))
        for number in range(count)
    ]


def kept(control: str, sha256: str) -> bytes:
    """The whole weights that a replica keeps, read back from it."""
    with connect(control) as channel:
        stub = weights_pb2_grpc.WeightServiceStub(channel)
        parts = stub.ReadWeights(weights_pb2.ReadWeightsRequest(sha256=sha256), timeout=SECONDS)
        return b"".join(part.chunk for part in parts)


def held(control: str) -> tuple[int, str]:
    """Version and digest that a replica serves."""
    with connect(control) as channel:
        stub = weights_pb2_grpc.WeightServiceStub(channel)
        model = stub.GetWeightVersion(weights_pb2.GetWeightVersionRequest(), timeout=SECONDS).model
    return model.weight_version, model.weight_digest


def served(room: PolicyRoom) -> dict[str, Tensor]:
    """The tensors that a replica in this process computes with, by name."""
    model: nn.Module = room.engine._model  # type: ignore[attr-defined]
    packed = {name: one.packed for name, one in model.named_modules() if isinstance(one, PackedLinear)}
    return model.state_dict() | {f"{name}.weight": one.to_dense() for name, one in packed.items()}


def times_read(page: str) -> int:
    """How often replicas in this process, or the one with this metrics address, began to pass weights on."""
    text = urlopen(f"http://{page}/metrics").read().decode()
    name = 'grpc_server_started_total{grpc_method="ReadWeights"'
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)))


class Client:
    """The worker's client of some replicas of the policy."""

    def __init__(
        self, folder: Path, replicas: list[tuple[str, str]], weights_folder: str = "", *, weights_nccl: bool = False
    ) -> None:
        addresses = run_pb2.ServiceAddresses(
            policy=[main for main, _ in replicas],
            policy_control=[control for _, control in replicas],
            judge="127.0.0.1:9",
            preference="127.0.0.1:9",
            preference_control="127.0.0.1:9",
            weights_folder=weights_folder,
            weights_nccl=weights_nccl,
        )
        self.reporter = Reporter(Artifacts(folder / "run", "run"), "run", 1, "")
        self.services = Services(addresses, self.reporter)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.services.close()
        self.reporter.close()

    def until_ready(self, count: int) -> None:
        replicas = self.services.policy.replicas
        with replicas.changed:
            assert replicas.changed.wait_for(lambda: len(replicas.ready()) == count, timeout=SECONDS)


def random_tensors(seed: int, mebibytes: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(mebibytes * 2**18, generator=generator)}


def test_the_tree_reaches_all_and_nobody_passes_on_to_more_than_two() -> None:
    addresses = [f"replica-{number}" for number in range(15)]
    tree = relays(addresses)
    assert [one for one in addresses if one not in tree] == addresses[:2]
    children = [list(tree.values()).count(one) for one in addresses]
    assert children == [2] * 6 + [1] + [0] * 8
    for one in addresses:
        steps = 0
        while one in tree:
            one, steps = tree[one], steps + 1
        assert steps <= 3, "every way ends at the sender"


def test_replicas_pass_weights_on_and_all_hold_the_same_bits(tmp_path: Path, tiny_model: Path) -> None:
    tensors = load_file(tiny_model / "model.safetensors")
    with ExitStack() as stack:
        rooms = [build(PolicyConfig(str(tiny_model), tmp_path / f"staging-{number}")) for number in range(6)]
        replicas = [stack.enter_context(running(room)) for room in rooms]
        before = times_read(replicas[0].metrics)
        with Client(tmp_path, [(one.main, one.control) for one in replicas]) as client:
            for version in (1, 2):
                sent = {name: tensor + version for name, tensor in tensors.items()}
                client.services.policy.send(sent, version)
                client.until_ready(6)
                for replica, room in zip(replicas, rooms, strict=True):
                    assert held(replica.control)[0] == version
                    state = served(room)
                    assert all(torch.equal(state[name], tensor) for name, tensor in sent.items())
        # The worker sent each version twice, four replicas got it from others.
        assert times_read(replicas[0].metrics) - before == 2 * 4


def test_a_relay_killed_in_the_middle_costs_a_resend_to_those_behind_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        relay = stack.enter_context(Process(tmp_path, "policy", "--model=fake", "--engine=fake"))
        others = fakes(stack, tmp_path, 5)
        relay.wait_serving()
        replicas = [(relay.main, relay.control), *((one.main, one.control) for one in others)]
        client = stack.enter_context(Client(tmp_path, replicas))
        client.services.policy.send(random_tensors(1), 1)
        client.until_ready(6)
        assert times_read(relay.metrics) == 2, "it passes on to two"
        # It takes connections but no bytes, so that those behind it wait in the middle of the update.
        relay.suspend()
        sending = threading.Thread(target=client.services.policy.send, args=(random_tensors(2), 2))
        sending.start()
        while held(others[0].control)[0] != 2:
            pass
        relay.kill()
        sending.join(SECONDS)
        client.until_ready(5)
        weights = pack_weights(random_tensors(2), 2)
        for one in others:
            assert held(one.control) == (2, weights.sha256)
            assert kept(one.control, weights.sha256) == weights.blob


def test_bytes_are_passed_on_as_they_come_and_a_break_is_told(tmp_path: Path) -> None:
    weights = pack_weights(random_tensors(3), 3)
    broken = threading.Event()

    def half() -> Iterator[weights_pb2.LoadWeightsRequest]:
        header = weights_pb2.WeightHeader(version=3, size=len(weights.blob), sha256=weights.sha256)
        yield weights_pb2.LoadWeightsRequest(header=header)
        for start in range(0, len(weights.blob) // 2, CHUNK_BYTES):
            yield weights_pb2.LoadWeightsRequest(chunk=bytes(weights.blob[start : start + CHUNK_BYTES]))
        broken.wait()

    def ask(control: str, peer: str) -> None:
        send_packed(control, weights, service="policy", force=True, peer=peer)

    with ExitStack() as stack:
        first, second = fakes(stack, tmp_path, 2)
        channels = [stack.enter_context(connect(one.control)) for one in (first, second)]
        begun = weights_pb2_grpc.WeightServiceStub(channels[0]).LoadWeights.future(half(), timeout=SECONDS)
        asking = threading.Thread(target=ask, args=(second.control, first.control))
        asking.start()
        passed_on = weights_pb2_grpc.WeightServiceStub(channels[1]).ReadWeights(
            weights_pb2.ReadWeightsRequest(sha256=weights.sha256), timeout=SECONDS
        )
        # Half of the bytes have come through both replicas while the sender still holds back the rest.
        read = b""
        while len(read) < len(weights.blob) // 2:
            read += next(passed_on).chunk
        assert weights.blob[: len(read)] == read
        begun.cancel()
        broken.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(passed_on)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        # The one behind gets them from the sender itself.
        asking.join(SECONDS)
        assert held(first.control) == (0, "")
        assert held(second.control) == (3, weights.sha256)
        assert kept(second.control, weights.sha256) == weights.blob


def test_a_shared_folder_holds_the_newest_weights_once_for_all(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    with ExitStack() as stack:
        replicas = fakes(stack, tmp_path, 4)
        before = times_read(replicas[0].metrics)
        client = Client(tmp_path, [(one.main, one.control) for one in replicas], str(folder))
        with client:
            for version in (1, 2):
                client.services.policy.send(random_tensors(version), version)
                client.until_ready(4)
                weights = pack_weights(random_tensors(version), version)
                (file,) = (path for path in folder.rglob("*") if path.is_file())
                assert file.read_bytes() == weights.blob
                assert all(kept(one.control, weights.sha256) == weights.blob for one in replicas)
                assert times_read(replicas[0].metrics) - before == 4 * version, "only this test reads from replicas"
        assert list(folder.iterdir()) == []


def test_what_is_served_stays_in_the_shared_folder_until_the_next_version_is(tmp_path: Path) -> None:
    """A replica that comes back while the next version is written still asks for the one before."""
    folder = SharedFolder(tmp_path, "run")
    (tmp_path / "weights-run").mkdir()
    (tmp_path / "weights-run" / "of an earlier attempt.partial").touch()
    folder = SharedFolder(tmp_path, "run")
    assert list(tmp_path.iterdir()) == []
    with ExitStack() as stack:
        (replica,) = fakes(stack, tmp_path / "replica", 1)
        first, second = (folder.put(pack_weights(random_tensors(version, 1), version)) for version in (1, 2))
        send_packed(replica.control, first, service="policy", force=False)
        assert held(replica.control) == (1, first.sha256)
        send_packed(replica.control, second, service="policy", force=False)
        folder.keep_only(second)
        assert [str(path) for path in tmp_path.rglob("*.safetensors")] == [second.path]
        # Not through the file's memory: it was read from the folder.
        with pytest.raises(ServiceError, match="NOT_FOUND"):
            send_packed(replica.control, first, service="policy", force=True)


def test_the_base_of_an_adapter_stays_in_the_shared_folder(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path, "run")
    base = folder.put(pack_weights(random_tensors(1), 1))
    for version in (2, 3):
        blob = memoryview(f"adapter {version}".encode())
        sha256 = hashlib.sha256(blob).hexdigest()
        adapter = folder.put(PackedWeights(version, blob, sha256, base=base))
        folder.keep_only(adapter)
        assert {str(path) for path in tmp_path.rglob("*.safetensors")} == {base.path, adapter.path}


def test_of_an_adapter_only_its_own_bytes_travel_and_it_is_served_at_once(tmp_path: Path, tiny_model: Path) -> None:
    base = load_file(tiny_model / "model.safetensors")
    layer = next(name for name in base if name.endswith("q_proj.weight")).removesuffix(".weight")
    rows, columns = base[f"{layer}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    adapter = {
        f"{layer}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(rows, 2, generator=generator),
    }

    def received() -> float:
        return float(RECEIVED_BYTES.labels("policy")._value.get())

    room = build(PolicyConfig(str(tiny_model), tmp_path / "staging"))
    with running(room) as at, Client(tmp_path, [(at.main, at.control)]) as client:
        client.services.policy.send(base, 1)
        before = received()
        client.services.policy.send_adapter(adapter, 2, lambda: base, 1)
        assert received() - before < 0.1 * (tiny_model / "model.safetensors").stat().st_size
        assert held(at.control)[0] == 2
        state = served(room)
    product = adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
    for name, tensor in base.items():
        expected = tensor + product if name == f"{layer}.weight" else tensor
        torch.testing.assert_close(state[name], expected, rtol=0, atol=1e-6)


def test_a_wrong_path_or_digest_is_refused_with_words_that_help(tmp_path: Path) -> None:
    weights = SharedFolder(tmp_path / "shared", "run").put(pack_weights(random_tensors(1), 1))
    with ExitStack() as stack:
        (replica,) = fakes(stack, tmp_path, 1)
        path = Path(weights.path)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(ServiceError, match=f"DATA_LOSS: the sha256 of the bytes from the file {path}"):
            send_packed(replica.control, weights, service="policy", force=True)
        path.write_bytes(content[:-1])
        with pytest.raises(ServiceError, match=f"bytes came from the file {path}"):
            send_packed(replica.control, weights, service="policy", force=True)
        path.unlink()
        with pytest.raises(ServiceError, match=r"NOT_FOUND.* services\.weights_folder must be a folder that"):
            send_packed(replica.control, weights, service="policy", force=True)
        assert held(replica.control) == (0, "")


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        ExitStack() as stack,
        Client(tmp_path, [(one.main, one.control) for one in fakes(stack, tmp_path, 1)], f"{tmp_path}/file") as client,
        pytest.raises(RunError, match=r"cannot write weights into services\.weights_folder"),
    ):
        client.services.policy.send(random_tensors(1), 1)

"""The policy's replicas as the worker sees them: answers and probes come from them, weights go to them."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from numpy.typing import NDArray

from charter.chat import ChatMessage
from charter.rpc.channel import BATCH
from charter.rpc.errors import explained
from charter.rpc.messages import proto_messages
from charter.rpc.tensors import from_tensor
from charter.v1 import policy_pb2, policy_pb2_grpc, run_pb2, types_pb2
from charter.weights.nccl_sender import NcclError, NcclSender
from charter.weights.sender import PackedWeights, WeightUpdate, pack_adapter, pack_weights
from charter.weights.shared_folder import SharedFolder
from charter.worker.clients.busy import BusyClock
from charter.worker.clients.replica import Replica
from charter.worker.clients.replicas import Replicas
from charter.worker.clients.spread import Work, spread, tokens_of
from charter.worker.errors import RunError
from charter.worker.reporter import Reporter
from charter.worker.seeds import derive_seed
from charter.worker.training import ranks

# A replica that takes longer for the few tokens of a probe does not take part in it.
PROBE_SECONDS = 60.0
# An engine that writes fewer tokens of an answer in a second counts as hung.
_LEAST_TOKENS_A_SECOND = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer. ``token_ids`` end with EOS where the model ended it (``ended``)."""

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    # Float32 [len(token_ids)], nats, at the sampling temperature.
    logprobs: NDArray[np.float32]
    # Version of the weights that wrote each token.
    versions: tuple[int, ...]
    ended: bool


class PolicyClient:
    """All replicas of the policy; ``close`` at the end.

    ``reporter`` hears of it when the run waits for replicas, and says whether it should stop.
    """

    def __init__(
        self, addresses: run_pb2.ServiceAddresses, reporter: Reporter, *, max_wait_seconds: float, sleeps: bool
    ) -> None:
        # While any of this run's answers is being sampled.
        self.sampling = BusyClock()
        # The last whole weights: what LoRA adapters are for.
        self._base: PackedWeights | None = None
        folder = Path(addresses.weights_folder)
        self._folder = SharedFolder(folder, reporter.run_id) if addresses.weights_folder else None
        self._nccl = NcclSender(ranks.device()) if addresses.weights_nccl else None
        self.replicas = Replicas(
            "policy",
            list(zip(addresses.policy, addresses.policy_control, strict=False)),
            "charter.v1.PolicyService",
            reporter,
            max_wait_seconds=max_wait_seconds,
            takes_weights=True,
            sleeps=sleeps,
        )

    def close(self) -> None:
        """Close every channel, and remove what lies in the shared folder."""
        self.replicas.close()
        if self._folder is not None:
            self._folder.close()
        if self._nccl is not None:
            self._nccl.close()

    def info(self) -> list[tuple[str, types_pb2.ModelInfo]]:
        """Address of each replica that answers, and what it serves."""
        return [(one.address.main, one.info) for one in self.replicas.contacted() if one.info is not None]

    def check_nccl(self) -> None:
        """Raise ``RunError`` unless every replica of the policy that answers can be in a NCCL group."""
        for one in self.replicas.contacted():
            if not one.nccl_ranks:
                engine = one.info.engine if one.info is not None else "unknown"
                raise RunError(
                    f"the policy at {one.address.main}, engine {engine}, cannot take weights by NCCL: serve it with "
                    "engine vllm on a GPU, or leave services.weights_nccl out of the spec"
                )

    def generate(
        self,
        prompts: Sequence[Sequence[ChatMessage]],
        sampling: run_pb2.SamplingSpec,
        *,
        version: int,
        seed: int,
        samples_per_prompt: int = 1,
        broken_off: threading.Event | None = None,
    ) -> list[list[Answer]]:
        """Sample answers by weights ``version``, [prompts][samples], spread over the replicas.

        Where the run sends newer weights meanwhile, these may write the rest. Each prompt has its own seed, so that it
        does not matter who answers it. Raises ``ServiceError`` when the request is refused, ``RunError`` when an answer
        is missing or was written by older weights or by somebody else's, and ``Cancelled`` soon after
        ``break_off(broken_off)``.
        """

        def ask(channel: grpc.Channel, items: Sequence[int]) -> Any:
            request = policy_pb2.GenerateRequest(
                prompts=[
                    policy_pb2.GenerationPrompt(
                        messages=proto_messages(prompts[item]), seed=derive_seed(seed, "prompt", item)
                    )
                    for item in items
                ],
                sampling=policy_pb2.SamplingParameters(
                    temperature=sampling.temperature, top_p=1.0, max_new_tokens=sampling.max_new_tokens
                ),
                samples_per_prompt=samples_per_prompt,
                required_weight_version=version,
            )
            return policy_pb2_grpc.PolicyServiceStub(channel).Generate(request)

        def read(
            asked: Sequence[int], replica: Replica, response: policy_pb2.GenerateResponse
        ) -> tuple[int, int, Answer]:
            answer = self._checked(replica, response.sample, version)
            return asked[response.prompt_index], response.sample_index, answer

        costs = [
            tokens_of(*(message.content for message in prompt)) + samples_per_prompt * sampling.max_new_tokens
            for prompt in prompts
        ]
        silence = max(BATCH, sampling.max_new_tokens / _LEAST_TOKENS_A_SECOND)
        self.replicas.wake()
        with self.sampling.busy():
            work = Work(costs, samples_per_prompt, ask, read, behind=True, silence_seconds=silence)
            return spread(self.replicas, work, broken_off)

    def probe(
        self, prompt: Sequence[ChatMessage], sampling: run_pb2.SamplingSpec, *, tokens: int, version: int, seed: int
    ) -> list[tuple[str, Answer]]:
        """One answer of at most ``tokens`` tokens from every replica that is ready, with its address; raises as others.

        A replica that fails is left to its keeper; with none left, this waits.
        """
        request = policy_pb2.GenerateRequest(
            prompts=[policy_pb2.GenerationPrompt(messages=proto_messages(prompt), seed=seed)],
            sampling=policy_pb2.SamplingParameters(
                temperature=sampling.temperature, top_p=1.0, max_new_tokens=min(tokens, sampling.max_new_tokens)
            ),
            required_weight_version=version,
        )

        def ask(replica: Replica) -> tuple[str, Answer]:
            with explained("policy", replica.address.main):
                stub = policy_pb2_grpc.PolicyServiceStub(replica.channel)
                (response,) = stub.Generate(request, timeout=PROBE_SECONDS)
            return replica.address.main, self._checked(replica, response.sample, version)

        self.replicas.wake()
        with self.sampling.busy():
            return self.replicas.some(ask)

    def _checked(self, replica: Replica, sample: policy_pb2.Sample, version: int) -> Answer:
        """An answer of ``version`` or of what this run has sent since; raises ``RunError`` for one of other weights."""
        answer = _answer(sample)
        newest = max(version, self.replicas.version or version)
        if foreign := sorted({one for one in answer.versions if not version <= one <= newest}):
            raise RunError(
                f"the policy service at {replica.address.main} answered with weight version {foreign}, this run is at "
                f"{newest}: something else sends weights to it. Stop that, then resume the run"
            )
        return answer

    def send(self, tensors: Mapping[str, torch.Tensor], version: int) -> WeightUpdate:
        """Serve weights on every replica of the policy: on all that can be reached now, on others when they can."""
        start = time.monotonic()
        weights = self._base = self._shared(pack_weights(tensors, version))
        if self._nccl is None:
            return self._serve(weights, start)
        send = partial(self._nccl.send, weights, tensors)
        try:
            return self._serve(weights, start, send)
        except NcclError as error:
            raise RunError(
                f"{error}. Leave services.weights_nccl out of the spec to send weights without it"
            ) from error

    def send_adapter(
        self,
        adapter: Mapping[str, torch.Tensor],
        version: int,
        base: Callable[[], Mapping[str, torch.Tensor]],
        base_version: int,
    ) -> WeightUpdate:
        """As ``send``, but only a LoRA adapter travels to replicas that keep ``base``, the weights it is for."""
        start = time.monotonic()
        if self._base is None or self._base.version != base_version:
            self._base = self._shared(pack_weights(base(), base_version))
        return self._serve(self._shared(pack_adapter(adapter, version, self._base)), start)

    def _serve(
        self, weights: PackedWeights, start: float, broadcast: Callable[[dict[str, int]], None] | None = None
    ) -> WeightUpdate:
        self.replicas.serve(weights, broadcast)
        if self._folder is not None:
            # Only now does no replica read what was served before.
            self._folder.keep_only(weights)
        return WeightUpdate(weights.version, time.monotonic() - start, len(weights.blob), weights.sha256)

    def _shared(self, weights: PackedWeights) -> PackedWeights:
        """Put weights into the shared folder, if the run has one."""
        if self._folder is None:
            return weights
        try:
            return self._folder.put(weights)
        except OSError as error:
            raise RunError(
                f"cannot write weights into services.weights_folder: {error}. Leave it out to send them over gRPC"
            ) from error

    def serves(self, version: int) -> bool:
        """Whether this process had the policy serve ``version`` last."""
        return self.replicas.version == version

    def updates_in_flight(self) -> bool:
        """Whether every replica exchanges weights in the middle of answers; the others do it between two batches."""
        return all(info.engine == "vllm" for _, info in self.info())

    def break_off(self, event: threading.Event) -> None:
        """End the calls of another thread that were given the event."""
        self.replicas.break_off(event)


def _answer(sample: policy_pb2.Sample) -> Answer:
    return Answer(
        text=sample.text,
        prompt_token_ids=tuple(sample.prompt_token_ids),
        token_ids=tuple(sample.token_ids),
        logprobs=from_tensor(sample.logprobs).astype(np.float32),
        versions=tuple(span.weight_version for span in sample.version_spans for _ in range(span.start, span.end)),
        ended=sample.finish_reason == policy_pb2.FINISH_REASON_EOS,
    )

"""The services as the worker sees them: one method for each thing it asks of them, errors worded for a person."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import torch
from numpy.typing import NDArray

from charter.chat import ChatMessage
from charter.rpc.channel import BATCH, QUICK, connect
from charter.rpc.errors import explained
from charter.rpc.messages import proto_messages
from charter.rpc.tensors import from_tensor
from charter.spec.facts import servers_sleep
from charter.v1 import (
    judge_pb2,
    judge_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    preference_pb2_grpc,
    run_pb2,
    types_pb2,
)
from charter.weights.nccl_sender import NcclError, NcclSender
from charter.weights.sender import PackedWeights, WeightUpdate, pack_adapter, pack_weights
from charter.weights.shared_folder import SharedFolder
from charter.worker.clients.busy import BusyClock
from charter.worker.clients.preference_client import PreferenceClient, scores_of
from charter.worker.clients.replica import Replica
from charter.worker.clients.replicas import Replicas
from charter.worker.clients.spread import Work, spread
from charter.worker.errors import RunError
from charter.worker.reporter import Reporter
from charter.worker.seeds import derive_seed
from charter.worker.training import ranks

V = TypeVar("V")

# A replica that takes longer for the few tokens of a probe does not take part in it.
PROBE_SECONDS = 60.0
# Characters of text that count as one token where only the load of a replica is estimated.
_CHARACTERS_A_TOKEN = 4


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


class Services:
    """The replicas of policy and judge, and the preference service; ``close`` them at the end.

    ``reporter`` hears of it when the run waits for replicas, and says whether it should stop.
    """

    def __init__(self, addresses: run_pb2.ServiceAddresses, reporter: Reporter) -> None:
        self.addresses = addresses
        # While any of this run's answers is being sampled.
        self.sampling = BusyClock()
        policies = list(zip(addresses.policy, addresses.policy_control, strict=False))
        sleep = servers_sleep(addresses)
        # The last whole weights: what LoRA adapters are for.
        self._base: PackedWeights | None = None
        folder = Path(addresses.weights_folder)
        self._folder = SharedFolder(folder, reporter.run_id) if addresses.weights_folder else None
        self._nccl = NcclSender(ranks.device()) if addresses.weights_nccl else None
        self._policies = Replicas(
            "policy", policies, "charter.v1.PolicyService", reporter, takes_weights=True, sleeps=sleep
        )
        judges = [(addresses.judge, addresses.judge_control), *((address, "") for address in addresses.judge_replicas)]
        # A judge without a control port has no memory on this GPU.
        self._judges = Replicas(
            "judge", judges, "charter.v1.JudgeService", reporter, sleeps=sleep and addresses.judge_control != ""
        )
        self.preference = PreferenceClient(addresses.preference, addresses.preference_control, reporter, sleeps=sleep)

    def close(self) -> None:
        """Close every channel, and remove what lies in the shared folder."""
        self._policies.close()
        self._judges.close()
        self.preference.close()
        if self._folder is not None:
            self._folder.close()
        if self._nccl is not None:
            self._nccl.close()

    def sleep(self) -> None:
        """Free the GPU memory of all services that share the worker's GPU; each wakes when it is next asked something.

        Raises ``ServiceError`` when one cannot sleep.
        """
        self._policies.sleep()
        if self.addresses.judge_control:
            self._judges.sleep()
        self.preference.sleep()

    def policy_info(self) -> list[tuple[str, types_pb2.ModelInfo]]:
        """Address of each replica of the policy that answers, and what it serves."""
        return [(one.address.main, one.info) for one in self._policies.contacted() if one.info is not None]

    def check_nccl(self) -> None:
        """Raise ``RunError`` unless every replica of the policy that answers can be in a NCCL group."""
        for one in self._policies.contacted():
            if not one.nccl_ranks:
                engine = one.info.engine if one.info is not None else "unknown"
                raise RunError(
                    f"the policy at {one.address.main}, engine {engine}, cannot take weights by NCCL: serve it with "
                    "engine vllm on a GPU, or leave services.weights_nccl out of the spec"
                )

    def judge_info(self) -> judge_pb2.JudgeServiceGetModelInfoResponse:
        """The judge's model and its default method. Raises ``RunError`` when its replicas differ."""
        request = judge_pb2.JudgeServiceGetModelInfoRequest()
        return self._same_of_judges(lambda stub: stub.GetModelInfo(request, timeout=QUICK))

    def constitution(self) -> judge_pb2.Constitution:
        """What the judge judges by. Raises ``RunError`` when its replicas differ."""
        request = judge_pb2.GetConstitutionRequest()
        return self._same_of_judges(lambda stub: stub.GetConstitution(request, timeout=QUICK).constitution)

    def _same_of_judges(self, ask: Callable[[judge_pb2_grpc.JudgeServiceStub], V]) -> V:
        found: list[tuple[str, V]] = []
        for judge in self._judges.contacted():
            with explained("judge", judge.address.main):
                found.append((judge.address.main, ask(judge_pb2_grpc.JudgeServiceStub(judge.channel))))
        first, same = found[0]
        for address, other in found[1:]:
            if other != same:
                raise RunError(
                    f"the judges at {first} and {address} differ in model, method or constitution: start them alike"
                )
        return same

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
            return policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=BATCH)

        def read(
            asked: Sequence[int], replica: Replica, response: policy_pb2.GenerateResponse
        ) -> tuple[int, int, Answer]:
            answer = self._checked(replica, response.sample, version)
            return asked[response.prompt_index], response.sample_index, answer

        costs = [
            _tokens(*(message.content for message in prompt)) + samples_per_prompt * sampling.max_new_tokens
            for prompt in prompts
        ]
        self._policies.wake()
        with self.sampling.busy():
            return spread(self._policies, Work(costs, samples_per_prompt, ask, read, behind=True), broken_off)

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

        self._policies.wake()
        with self.sampling.busy():
            while not (answers := self._policies.each(ask)):
                self._policies.wait_ready()
        return answers

    def _checked(self, replica: Replica, sample: policy_pb2.Sample, version: int) -> Answer:
        """An answer of ``version`` or of what this run has sent since; raises ``RunError`` for one of other weights."""
        answer = _answer(sample)
        newest = max(version, self._policies.version or version)
        if foreign := sorted({one for one in answer.versions if not version <= one <= newest}):
            raise RunError(
                f"the policy service at {replica.address.main} answered with weight version {foreign}, this run is at "
                f"{newest}: something else sends weights to it. Stop that, then resume the run"
            )
        return answer

    def compare(
        self, items: Sequence[judge_pb2.ComparisonItem], options: judge_pb2.JudgingOptions
    ) -> Mapping[str, judge_pb2.Judgement]:
        """The judgement of each item, by its id; failed ones carry their outcome. Spread over the judges.

        Raises ``ServiceError`` when the request is refused, ``RunError`` when a judgement is missing.
        """

        def ask(channel: grpc.Channel, chosen: Sequence[int]) -> Any:
            request = judge_pb2.CompareRequest(items=[items[index] for index in chosen], options=options)
            return judge_pb2_grpc.JudgeServiceStub(channel).Compare(request, timeout=BATCH)

        ids = {item.id: index for index, item in enumerate(items)}

        def read(
            asked: Sequence[int], replica: Replica, response: judge_pb2.CompareResponse
        ) -> tuple[int, int, judge_pb2.Judgement]:
            return ids[response.item_id], 0, response.judgement

        costs = [_tokens(*(message.content for message in item.prompt), item.answer_a, item.answer_b) for item in items]
        self._judges.wake()
        judged = spread(self._judges, Work(costs, 1, ask, read))
        return {item.id: judgement for item, (judgement,) in zip(items, judged, strict=True)}

    def score_elsewhere(
        self, address: str, model: str, items: Sequence[tuple[Sequence[ChatMessage], str]]
    ) -> list[float]:
        """Score of each (prompt, answer) by a model of any service with ``PreferenceService.Score``.

        An empty ``model`` is the service's first. Raises as ``rate``.
        """
        with connect(address) as channel:
            stub = preference_pb2_grpc.PreferenceServiceStub(channel)
            return [response.score for response in scores_of("reward", address, stub, items, model=model)]

    def rate(self, items: Sequence[judge_pb2.AnswerItem], options: judge_pb2.JudgingOptions) -> list[float]:
        """The judge's rating of each answer, -1 to 1.

        Raises as ``PreferenceClient.score``, also for an answer that was left unrated.
        """

        def ask(channel: grpc.Channel, chosen: Sequence[int]) -> Any:
            request = judge_pb2.JudgeServiceScoreRequest(items=[items[index] for index in chosen], options=options)
            return judge_pb2_grpc.JudgeServiceStub(channel).Score(request, timeout=BATCH)

        ids = {item.id: index for index, item in enumerate(items)}

        def read(
            asked: Sequence[int], replica: Replica, response: judge_pb2.JudgeServiceScoreResponse
        ) -> tuple[int, int, float]:
            if not response.rated:
                raise RunError(f"the judge at {replica.address.main} could not rate an answer: {response.failure}")
            return ids[response.item_id], 0, response.score

        costs = [_tokens(*(message.content for message in item.prompt), item.answer) for item in items]
        self._judges.wake()
        return [rating for (rating,) in spread(self._judges, Work(costs, 1, ask, read))]

    def send_policy(self, tensors: Mapping[str, torch.Tensor], version: int) -> WeightUpdate:
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

    def send_policy_adapter(
        self,
        adapter: Mapping[str, torch.Tensor],
        version: int,
        base: Callable[[], Mapping[str, torch.Tensor]],
        base_version: int,
    ) -> WeightUpdate:
        """As ``send_policy``, but only a LoRA adapter travels to replicas that keep ``base``, the weights it is for."""
        start = time.monotonic()
        if self._base is None or self._base.version != base_version:
            self._base = self._shared(pack_weights(base(), base_version))
        return self._serve(self._shared(pack_adapter(adapter, version, self._base)), start)

    def _serve(
        self, weights: PackedWeights, start: float, broadcast: Callable[[dict[str, int]], None] | None = None
    ) -> WeightUpdate:
        self._policies.serve(weights, broadcast)
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

    def policy_serves(self, version: int) -> bool:
        """Whether this process had the policy serve ``version`` last."""
        return self._policies.version == version

    def policy_updates_in_flight(self) -> bool:
        """Whether every replica exchanges weights in the middle of answers; the others do it between two batches."""
        return all(info.engine == "vllm" for _, info in self.policy_info())

    def break_off(self, event: threading.Event) -> None:
        """End the calls of another thread that were given the event."""
        self._policies.break_off(event)

    def check_policy(self) -> None:
        """Raise ``RunError`` when a replica of the policy holds weights of somebody else."""
        self._policies.check_own()


def _tokens(*texts: str) -> int:
    return 1 + sum(len(text) for text in texts) // _CHARACTERS_A_TOKEN


def _answer(sample: policy_pb2.Sample) -> Answer:
    return Answer(
        text=sample.text,
        prompt_token_ids=tuple(sample.prompt_token_ids),
        token_ids=tuple(sample.token_ids),
        logprobs=from_tensor(sample.logprobs).astype(np.float32),
        versions=tuple(span.weight_version for span in sample.version_spans for _ in range(span.start, span.end)),
        ended=sample.finish_reason == policy_pb2.FINISH_REASON_EOS,
    )

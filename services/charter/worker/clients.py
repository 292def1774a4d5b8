"""The services as the worker sees them: one method for each thing it asks of them, errors worded for a person."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from charter.inference.engine import ChatMessage
from charter.rpc.channel import BATCH, QUICK, connect
from charter.rpc.errors import explained
from charter.rpc.messages import proto_messages
from charter.rpc.tensors import from_tensor
from charter.v1 import (
    judge_pb2,
    judge_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    preference_pb2,
    preference_pb2_grpc,
    run_pb2,
    types_pb2,
    weights_pb2,
    weights_pb2_grpc,
)
from charter.weights.sender import WeightUpdate, send_weights
from charter.worker.errors import RunError
from charter.worker.seeds import derive_seed

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer. ``token_ids`` end with EOS where the model ended it (``ended``)."""

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    # Float32 [len(token_ids)], nats, at the sampling temperature.
    logprobs: NDArray[np.float32]
    ended: bool


class Services:
    """Channels to policy, judge and preference; ``close`` them at the end."""

    def __init__(self, addresses: run_pb2.ServiceAddresses) -> None:
        self.addresses = addresses
        self._policy_channels = [connect(address) for address in addresses.policy]
        self._judge_channel = connect(addresses.judge)
        self._preference_channel = connect(addresses.preference)
        self._judge = judge_pb2_grpc.JudgeServiceStub(self._judge_channel)
        self._preference = preference_pb2_grpc.PreferenceServiceStub(self._preference_channel)

    def close(self) -> None:
        """Close every channel."""
        for channel in (*self._policy_channels, self._judge_channel, self._preference_channel):
            channel.close()

    def policy_info(self) -> list[types_pb2.ModelInfo]:
        """What each replica of the policy serves."""
        infos = []
        for address, channel in zip(self.addresses.policy, self._policy_channels, strict=True):
            with explained("policy", address):
                stub = policy_pb2_grpc.PolicyServiceStub(channel)
                request = policy_pb2.PolicyServiceGetModelInfoRequest()
                infos.append(stub.GetModelInfo(request, timeout=QUICK).model)
        return infos

    def judge_info(self) -> judge_pb2.JudgeServiceGetModelInfoResponse:
        """The judge's model and its default method."""
        with explained("judge", self.addresses.judge):
            return self._judge.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK)

    def preference_info(self) -> types_pb2.ModelInfo:
        """The preference model that is served."""
        with explained("preference", self.addresses.preference):
            request = preference_pb2.PreferenceServiceGetModelInfoRequest()
            return self._preference.GetModelInfo(request, timeout=QUICK).model

    def constitution(self) -> judge_pb2.Constitution:
        """What the judge judges by."""
        with explained("judge", self.addresses.judge):
            return self._judge.GetConstitution(judge_pb2.GetConstitutionRequest(), timeout=QUICK).constitution

    def check_control_ports(self) -> None:
        """Raise ``ServiceError`` unless weights could be sent to the policy and the preference service."""
        controls = [("policy", address) for address in self.addresses.policy_control]
        for service, address in (*controls, ("preference", self.addresses.preference_control)):
            with explained(f"{service} weight", address), connect(address) as channel:
                stub = weights_pb2_grpc.WeightServiceStub(channel)
                stub.GetWeightVersion(weights_pb2.GetWeightVersionRequest(), timeout=QUICK)

    def generate(
        self,
        prompts: Sequence[Sequence[ChatMessage]],
        sampling: run_pb2.SamplingSpec,
        *,
        version: int,
        seed: int,
        samples_per_prompt: int = 1,
    ) -> list[list[Answer]]:
        """Sample answers, [prompts][samples], sharing the prompts out over the replicas.

        Raises ``ServiceError`` when a call fails, and ``RunError`` when an answer is missing or was written by another
        weight version than ``version``.
        """
        replicas = len(self._policy_channels)
        answers: list[list[Answer]] = [[] for _ in prompts]

        def ask(replica: int) -> None:
            places = range(replica, len(prompts), replicas)
            request = policy_pb2.GenerateRequest(
                prompts=[policy_pb2.GenerationPrompt(messages=proto_messages(prompts[place])) for place in places],
                sampling=policy_pb2.SamplingParameters(
                    temperature=sampling.temperature,
                    top_p=1.0,
                    max_new_tokens=sampling.max_new_tokens,
                    seed=derive_seed(seed, "replica", replica),
                ),
                samples_per_prompt=samples_per_prompt,
                required_weight_version=version,
            )
            found = self._generate_on(replica, request, version)
            for place, samples in zip(places, found, strict=True):
                answers[place] = samples

        asked = min(replicas, len(prompts))
        with ThreadPoolExecutor(max_workers=max(1, asked)) as pool:
            for done in [pool.submit(ask, replica) for replica in range(asked)]:
                done.result()
        return answers

    def _generate_on(self, replica: int, request: policy_pb2.GenerateRequest, version: int) -> list[list[Answer]]:
        address = self.addresses.policy[replica]
        stub = policy_pb2_grpc.PolicyServiceStub(self._policy_channels[replica])
        found: dict[tuple[int, int], Answer] = {}
        with explained("policy", address):
            for response in stub.Generate(request, timeout=BATCH):
                written_by = {span.weight_version for span in response.sample.version_spans}
                if written_by - {version}:
                    raise RunError(
                        f"the policy service at {address} answered with weight version {sorted(written_by)}, this run "
                        f"is at {version}: something else sends weights to it. Stop that, then resume the run"
                    )
                found[response.prompt_index, response.sample_index] = _answer(response.sample)
        expected = [
            [(prompt, sample) for sample in range(request.samples_per_prompt)] for prompt in range(len(request.prompts))
        ]
        missing = sum(key not in found for keys in expected for key in keys)
        if missing:
            raise RunError(f"the policy service at {address} left out {missing} answers; see its log")
        return [[found[key] for key in keys] for keys in expected]

    def compare(
        self, items: Sequence[judge_pb2.ComparisonItem], options: judge_pb2.JudgingOptions
    ) -> Mapping[str, judge_pb2.Judgement]:
        """The judgement of each item, by its id; failed ones carry their outcome. Raises as ``generate``."""
        request = judge_pb2.CompareRequest(items=items, options=options)
        with explained("judge", self.addresses.judge):
            judged = {response.item_id: response.judgement for response in self._judge.Compare(request, timeout=BATCH)}
        return _complete("judge", self.addresses.judge, [item.id for item in items], judged)

    def add_comparisons(self, request_id: str, comparisons: Sequence[types_pb2.Comparison]) -> None:
        """Store comparisons, all or none; repeating a request id stores nothing."""
        request = preference_pb2.AddComparisonsRequest(request_id=request_id, comparisons=comparisons)
        with explained("preference", self.addresses.preference):
            self._preference.AddComparisons(request, timeout=BATCH)

    def comparisons(
        self, run_id: str = "", source: types_pb2.LabelSource.ValueType = types_pb2.LABEL_SOURCE_UNSPECIFIED
    ) -> Iterator[types_pb2.Comparison]:
        """Stored comparisons of a run (empty = of all), and of a source, oldest first."""
        chosen = preference_pb2.ComparisonFilter(run_id=run_id, source=source)
        request = preference_pb2.StreamComparisonsRequest(filter=chosen)
        with explained("preference", self.addresses.preference):
            for page in self._preference.StreamComparisons(request, timeout=BATCH):
                yield from page.comparisons

    def count_labels(self, source: types_pb2.LabelSource.ValueType) -> int:
        """How many comparisons with a label a source has stored."""
        request = preference_pb2.GetStatsRequest(
            filter=preference_pb2.ComparisonFilter(source=source, labelled_only=True)
        )
        with explained("preference", self.addresses.preference):
            return int(self._preference.GetStats(request, timeout=QUICK).total)

    def score(self, items: Sequence[tuple[Sequence[ChatMessage], str]], version: int) -> list[float]:
        """Preference score of each (prompt, answer). A score that is missing or not finite is an error, never a number.

        Raises ``ServiceError`` when the call fails, ``RunError`` for missing scores or scores of another version.
        """
        request = preference_pb2.PreferenceServiceScoreRequest(
            items=[
                preference_pb2.ScoreItem(id=str(index), prompt=proto_messages(prompt), answer=answer)
                for index, (prompt, answer) in enumerate(items)
            ],
            required_weight_version=version,
        )
        address = self.addresses.preference
        scores: dict[str, float] = {}
        with explained("preference", address):
            for response in self._preference.Score(request, timeout=BATCH):
                if response.weight_version != version:
                    raise RunError(
                        f"the preference service at {address} scored with version {response.weight_version}, this run "
                        f"sent version {version}: something else sends weights to it. Stop that, then resume the run"
                    )
                if not np.isfinite(response.score):
                    raise RunError(
                        f"the preference service at {address} gave the score {response.score}: the preference model is "
                        "broken. Look at preference_fit.json; lower preference_model.learning_rate"
                    )
                scores[response.item_id] = response.score
        ids = [item.id for item in request.items]
        complete = _complete("preference", address, ids, scores)
        return [complete[item] for item in ids]

    def send_policy(self, tensors: Mapping[str, torch.Tensor], version: int, *, force: bool = False) -> WeightUpdate:
        """Serve weights on every replica of the policy."""
        return send_weights(self.addresses.policy_control, tensors, version, service="policy", force=force)

    def send_preference_model(self, tensors: Mapping[str, torch.Tensor], version: int) -> WeightUpdate:
        """Serve a preference model, whatever was served before."""
        address = self.addresses.preference_control
        return send_weights([address], tensors, version, service="preference", force=True)


def _complete(service: str, address: str, ids: Sequence[str], results: Mapping[str, V]) -> Mapping[str, V]:
    missing = sum(item not in results for item in ids)
    if missing:
        raise RunError(f"the {service} service at {address} left out {missing} of {len(ids)} results; see its log")
    return results


def _answer(sample: policy_pb2.Sample) -> Answer:
    return Answer(
        text=sample.text,
        prompt_token_ids=tuple(sample.prompt_token_ids),
        token_ids=tuple(sample.token_ids),
        logprobs=from_tensor(sample.logprobs).astype(np.float32),
        ended=sample.finish_reason == policy_pb2.FINISH_REASON_EOS,
    )

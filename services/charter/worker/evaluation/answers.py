"""Asks a policy service for the answers of one model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from charter.data.prompts import TaskPrompt
from charter.rpc.channel import BATCH, QUICK, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.messages import proto_messages
from charter.rpc.stalled import unless_stalled
from charter.v1 import policy_pb2, policy_pb2_grpc, run_pb2, types_pb2
from charter.worker.clients.failed import Failed
from charter.worker.errors import RunError

# Answers in one call.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that is answered with a seed of its own; ``sample`` tells several answers to it apart."""

    prompt: TaskPrompt
    sample: int
    seed: int


def served_model(address: str) -> types_pb2.ModelInfo:
    """What a policy service serves. Raises ``ServiceError``."""
    with connect(address) as channel, explained("policy", address):
        request = policy_pb2.PolicyServiceGetModelInfoRequest()
        return policy_pb2_grpc.PolicyServiceStub(channel).GetModelInfo(request, timeout=QUICK).model


def answers(
    address: str, items: Sequence[Asked], sampling: run_pb2.SamplingSpec, weight_version: int
) -> Iterator[tuple[Asked, policy_pb2.Sample | Failed]]:
    """The answer to each item as it comes, or why there is none.

    Raises ``ServiceError``, and ``RunError`` for an answer by other weights than ``weight_version``.
    """
    with connect(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for start in range(0, len(items), _BATCH):
            for item, found in _batch(stub, address, items[start : start + _BATCH], sampling):
                if isinstance(found, policy_pb2.Sample):
                    _check_weights(address, found, weight_version)
                yield item, found


def _batch(
    stub: policy_pb2_grpc.PolicyServiceStub, address: str, items: Sequence[Asked], sampling: run_pb2.SamplingSpec
) -> Iterator[tuple[Asked, policy_pb2.Sample | Failed]]:
    request = policy_pb2.GenerateRequest(
        prompts=[
            policy_pb2.GenerationPrompt(messages=proto_messages(item.prompt.messages), seed=item.seed) for item in items
        ],
        sampling=policy_pb2.SamplingParameters(
            temperature=sampling.temperature, top_p=1.0, max_new_tokens=sampling.max_new_tokens
        ),
    )
    left = dict(enumerate(items))
    try:
        with explained("policy", address):
            for response in unless_stalled(stub.Generate(request), BATCH):
                yield left.pop(response.prompt_index), response.sample
    except ServiceError as error:
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        if len(items) == 1:
            reason = next((one.reason for one in error.violations if one.reason), "REFUSED")
            yield items[0], Failed(reason.lower(), error.details)
            return
        # One prompt that the model cannot read must not take the others with it.
        for item in left.values():
            yield from _batch(stub, address, [item], sampling)
        return
    if left:
        problem = f"it left out {len(left)} of {len(items)} answers; see its log"
        raise ServiceError("policy", address, grpc.StatusCode.DATA_LOSS, problem)


def _check_weights(address: str, sample: policy_pb2.Sample, wanted: int) -> None:
    others = sorted({span.weight_version for span in sample.version_spans} - {wanted})
    if others:
        raise RunError(
            f"the policy service at {address} answered by weight version {others[0]}, and its first answers were by "
            f"{wanted}: something sends weights to it. Stop that, and evaluate the model under another name"
        )

"""Asks the policy service of the start model how likely the answers of models are under it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum

import grpc

from charter.data.prompts import TaskPrompt
from charter.rpc.channel import BATCH, connect
from charter.rpc.errors import ServiceError, explained
from charter.rpc.messages import proto_messages
from charter.rpc.stalled import unless_stalled
from charter.v1 import policy_pb2, policy_pb2_grpc
from charter.worker.clients.failed import Failed
from charter.worker.errors import RunError

# Answers in one call, which is answered when all are computed.
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Said:
    """What a model answered to a prompt."""

    model: str
    prompt: TaskPrompt
    sample: int
    text: str

    @property
    def key(self) -> tuple[str, str, int]:
        """Model, prompt and sample."""
        return self.model, self.prompt.key, self.sample


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The negative log-prob of an answer in nats, at temperature 1, and its tokens; its end is not one of them."""

    nats: float
    tokens: int


def likelihoods(address: str, items: Sequence[Said], weight_version: int) -> Iterator[tuple[Said, Likelihood | Failed]]:
    """The likelihood of each answer, or why it has none; answers to one prompt should follow each other.

    Raises ``ServiceError``, and ``RunError`` where other weights than ``weight_version`` answer.
    """
    with connect(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for start in range(0, len(items), _BATCH):
            yield from _batch(stub, address, items[start : start + _BATCH], weight_version)


def _batch(
    stub: policy_pb2_grpc.PolicyServiceStub, address: str, items: Sequence[Said], version: int
) -> Iterator[tuple[Said, Likelihood | Failed]]:
    # How many tokens stand before an answer is what the prompt alone has.
    prompts = list({item.prompt.key: item.prompt for item in items}.values())
    place = {prompt.key: index for index, prompt in enumerate(prompts)}
    request = policy_pb2.PolicyServiceScoreRequest(
        prompts=[
            *(policy_pb2.GenerationPrompt(messages=proto_messages(prompt.messages)) for prompt in prompts),
            *(
                policy_pb2.GenerationPrompt(messages=proto_messages(item.prompt.messages), assistant_prefix=item.text)
                for item in items
            ),
        ]
    )
    try:
        with explained("policy", address):
            found = {one.prompt_index: one for one in unless_stalled(stub.Score(request), BATCH)}
    except ServiceError as error:
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        if len(items) == 1:
            reason = next((one.reason for one in error.violations if one.reason), "REFUSED")
            yield items[0], Failed(reason.lower(), error.details)
            return
        # One answer that the model cannot read must not take the others with it.
        for item in items:
            yield from _batch(stub, address, [item], version)
        return
    if left := len(request.prompts) - len(found):
        problem = f"it left out {left} of {len(request.prompts)} scores; see its log"
        raise ServiceError("policy", address, grpc.StatusCode.DATA_LOSS, problem)
    if others := {one.weight_version for one in found.values()} - {version}:
        raise RunError(
            f"the policy service at {address} scored by weight version {min(others)}, and answered by {version}: "
            "something sends weights to it. Stop that, and evaluate the model under another name"
        )
    for index, item in enumerate(items, len(prompts)):
        before = len(found[place[item.prompt.key]].places)
        logprobs = [one.token.logprob for one in found[index].places[before:]]
        yield item, Likelihood(-fsum(logprobs), len(logprobs))

"""The services behind the gateway that answer by PolicyService, by the names of their models."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from charter.gateway.errors import RequestError
from charter.rpc.channel import BATCH, QUICK, connect_async
from charter.rpc.errors import ServiceError, explained
from charter.rpc.stalled import unless_stalled_async
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2

_HEALTH = health_pb2.HealthCheckRequest(service="charter.v1.PolicyService")
# Answers of a replica for which another may be asked, as long as nothing has come.
_ASK_ANOTHER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
# Seconds for which a replica that gave one of them is asked last.
_LAST_SECONDS = 10.0


@dataclass(eq=False)
class _Replica:
    address: str
    channel: grpc.aio.Channel
    stub: "policy_pb2_grpc.PolicyServiceAsyncStub"
    calls: int = 0
    failed: float = -math.inf  # When it last gave an answer of _ASK_ANOTHER, by time.monotonic().

    def may_pass_on(self, error: ServiceError) -> bool:
        """Whether another may be asked for what this one has refused."""
        if error.code not in _ASK_ANOTHER:
            return False
        self.failed = time.monotonic()
        return True


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be asked for, and what its policy says of it."""

    name: str
    policy: "Policy"
    info: types_pb2.ModelInfo


class Policy:
    """One policy service: the replicas at ``addresses``, host:port with commas between them. Raises ``ServiceError``.

    A call goes to the replica with the fewest under way; one that is away or full passes it on, and is asked last for
    a while.
    """

    def __init__(self, addresses: str) -> None:
        self._replicas = []
        for address in addresses.split(","):
            channel = connect_async(address)
            self._replicas.append(_Replica(address, channel, policy_pb2_grpc.PolicyServiceStub(channel)))

    async def close(self) -> None:
        """Close the channels; calls under way end."""
        for one in self._replicas:
            await one.channel.close()

    async def info(self) -> types_pb2.ModelInfo:
        """What is served."""
        request = policy_pb2.PolicyServiceGetModelInfoRequest()
        for last, replica in self._in_turn():
            try:
                with explained("policy", replica.address):
                    answer = await replica.stub.GetModelInfo(request, timeout=QUICK)
                return answer.model
            except ServiceError as error:
                if not replica.may_pass_on(error) or last:
                    raise
        raise AssertionError("a policy has at least one replica")

    async def serves(self) -> bool:
        """Whether a replica takes calls."""
        for _, replica in self._in_turn():
            try:
                answer = await health_pb2_grpc.HealthStub(replica.channel).Check(_HEALTH, timeout=QUICK)
            except grpc.RpcError:
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return True
        return False

    def generate(self, request: policy_pb2.GenerateRequest) -> AsyncGenerator[policy_pb2.GenerateResponse, None]:
        """Samples as they come; closing this ends the call."""
        return self._stream(lambda stub: stub.Generate(request))

    def score(
        self, request: policy_pb2.PolicyServiceScoreRequest
    ) -> AsyncGenerator[policy_pb2.PolicyServiceScoreResponse, None]:
        """Scored prompts as they come."""
        return self._stream(lambda stub: stub.Score(request))

    async def _stream(self, call: Callable[[Any], Any]) -> AsyncGenerator[Any, None]:
        for last, replica in self._in_turn():
            begun = False
            replica.calls += 1
            try:
                with explained("policy", replica.address):
                    async with aclosing(unless_stalled_async(call(replica.stub), BATCH)) as responses:
                        async for response in responses:
                            begun = True
                            yield response
                return
            except ServiceError as error:
                if begun or not replica.may_pass_on(error) or last:
                    raise
            finally:
                replica.calls -= 1

    def _in_turn(self) -> list[tuple[bool, _Replica]]:
        """The replicas, the least busy first, each with whether it is the last."""
        now = time.monotonic()
        replicas = sorted(self._replicas, key=lambda one: (now - one.failed < _LAST_SECONDS, one.calls))
        return [(one is replicas[-1], one) for one in replicas]


class Policies:
    """All policies by the names that were given; of one without a name its model's is asked for at every request."""

    def __init__(self, addresses: Mapping[str, str], unnamed: list[str]) -> None:
        self._policies = [("", Policy(one)) for one in unnamed]
        self._policies += [(name, Policy(one)) for name, one in addresses.items()]

    async def close(self) -> None:
        """Close every channel."""
        for _, policy in self._policies:
            await policy.close()

    async def models(self) -> list[Model]:
        """The models of the policies that answer. Raises ``ServiceError`` where none does."""
        found, failed = _parted(await asyncio.gather(*self._ask()))
        if failed and not found:
            raise failed[0]
        return found

    async def find(self, name: str) -> Policy:
        """The policy of a model. Raises ``RequestError`` for a model that is not there.

        Raises ``ServiceError`` where it may be that of a policy that does not answer.
        """
        for given, policy in self._policies:
            if given == name:
                return policy
        asked = self._ask()
        try:
            for answer in asyncio.as_completed(asked):
                one = await answer
                if isinstance(one, Model) and one.name == name:
                    # Others, which may be away, are not waited for.
                    return one.policy
        finally:
            for task in asked:
                task.cancel()
        answers = [task.result() for task in asked]
        for (given, _), reason in zip(self._policies, answers, strict=True):
            if not given and isinstance(reason, ServiceError):
                raise reason
        found, _ = _parted(answers)
        known = ", ".join(one.name for one in found)
        raise RequestError(404, f"there is no model {name!r} here, but {known}", "model", "model_not_found")

    def _ask(self) -> list[asyncio.Task[Model | ServiceError]]:
        """All at once: each policy's model, or why it does not answer."""

        async def ask(name: str, policy: Policy) -> Model | ServiceError:
            try:
                info = await policy.info()
            except ServiceError as error:
                return error
            return Model(name or _name_of(info.model), policy, info)

        return [asyncio.create_task(ask(name, policy)) for name, policy in self._policies]

    async def ready(self) -> bool:
        """Whether any policy takes calls."""
        return any(await asyncio.gather(*(one.serves() for _, one in self._policies)))


def _parted(answers: Iterable[Model | ServiceError]) -> tuple[list[Model], list[ServiceError]]:
    found: list[Model] = []
    failed: list[ServiceError] = []
    for one in answers:
        if isinstance(one, Model):
            found.append(one)
        else:
            failed.append(one)
    return found, failed


def _name_of(model: str) -> str:
    """A hub id as it is; of a folder its own name, because clients need not know where it is."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", ".", "~")) else model

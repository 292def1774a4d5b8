"""The services as the page sees them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from charter.rpc.channel import BATCH, QUICK, connect_async
from charter.rpc.errors import explained
from charter.rpc.stalled import unless_stalled_async
from charter.v1 import policy_pb2, policy_pb2_grpc, preference_pb2, preference_pb2_grpc, types_pb2

_HUMAN = types_pb2.LABEL_SOURCE_HUMAN


class Services:
    """Channels to policy and preference; ``close`` them at the end. Failed calls raise ``ServiceError``."""

    def __init__(self, policy: str, preference: str) -> None:
        self._at_policy = policy
        self._at_preference = preference
        self._channels = (connect_async(policy), connect_async(preference))
        self._policy = policy_pb2_grpc.PolicyServiceStub(self._channels[0])
        self._preference = preference_pb2_grpc.PreferenceServiceStub(self._channels[1])
        # Behind the last label that was given.
        self._cursor = ""

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

    async def policy_model(self) -> str:
        """Name of the model that the policy serves."""
        with explained("policy", self._at_policy):
            answer = await self._policy.GetModelInfo(policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=QUICK)
        return str(answer.model.model)

    async def write(
        self, messages: Sequence[types_pb2.Message], sampling: policy_pb2.SamplingParameters, samples: int
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        """Answers to one conversation, with their texts while they are written."""
        request = policy_pb2.GenerateRequest(
            prompts=[policy_pb2.GenerationPrompt(messages=messages)],
            sampling=sampling,
            samples_per_prompt=samples,
            stream_text=True,
        )
        with explained("policy", self._at_policy):
            async with aclosing(unless_stalled_async(self._policy.Generate(request), BATCH)) as responses:
                async for response in responses:
                    yield response

    async def add(self, request_id: str, comparison: types_pb2.Comparison) -> str:
        """Store a label; its id in the store. Repeating a request id stores nothing."""
        request = preference_pb2.AddComparisonsRequest(request_id=request_id, comparisons=[comparison])
        with explained("preference", self._at_preference):
            answer = await self._preference.AddComparisons(request, timeout=QUICK)
        return str(answer.ids[0])

    async def remove(self, comparison_id: str, labeller: str) -> None:
        """Take a person's own label out again."""
        request = preference_pb2.RemoveComparisonsRequest(ids=[comparison_id], source=_HUMAN, labeller=labeller)
        with explained("preference", self._at_preference):
            await self._preference.RemoveComparisons(request, timeout=QUICK)

    async def labels(self) -> AsyncIterator[types_pb2.Comparison]:
        """People's labels that were stored since this was last called."""
        chosen = preference_pb2.ComparisonFilter(source=_HUMAN)
        async for page in self._pages(chosen, self._cursor):
            for comparison in page.comparisons:
                yield comparison
            self._cursor = page.cursor

    async def judged(self, run: str) -> AsyncIterator[types_pb2.Comparison]:
        """The comparisons of a run that are no person's, oldest first."""
        async for page in self._pages(preference_pb2.ComparisonFilter(run_id=run), ""):
            for comparison in page.comparisons:
                if comparison.source != _HUMAN:
                    yield comparison

    async def _pages(
        self, chosen: preference_pb2.ComparisonFilter, after_cursor: str
    ) -> AsyncIterator[preference_pb2.StreamComparisonsResponse]:
        """Stored comparisons, oldest first."""
        request = preference_pb2.StreamComparisonsRequest(filter=chosen, after_cursor=after_cursor)
        with explained("preference", self._at_preference):
            async with aclosing(unless_stalled_async(self._preference.StreamComparisons(request), BATCH)) as pages:
                async for page in pages:
                    yield page

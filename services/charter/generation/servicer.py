"""PolicyService: from requests to the engine, and samples back as they finish."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager, nullcontext

import grpc

from charter.generation.messages import place, prompts_of, sample_response, sampling_of, score_response
from charter.inference.engine import (
    BudgetSpentError,
    ContextTooLongError,
    Engine,
    GeneratedSample,
    Prompt,
    RefusedRequestError,
    Sampling,
    ScoredPrompt,
    TokenPlace,
)
from charter.rpc.errors import StatusError, invalid_fields
from charter.rpc.gate import Gate
from charter.rpc.validation import Violation
from charter.v1 import policy_pb2, policy_pb2_grpc
from charter.weights.receiver import model_info


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """Serves one engine. Takes calls while ``gate`` is open, and at most ``max_requests`` at a time.

    A service that counts what is asked overrides ``_waits``, ``_works`` and ``_sampled``.
    """

    def __init__(self, engine: Engine, max_requests: int, gate: Gate) -> None:
        self._engine = engine
        self._max_requests = max_requests
        self._requests = 0
        self._gate = gate

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        """Sample answers and send each when it is finished. A client that leaves frees its place in the engine."""
        self._admit(request.required_weight_version)
        prompts = prompts_of(request.prompts)
        samples_per_prompt = request.samples_per_prompt if request.HasField("samples_per_prompt") else 1
        start = time.monotonic()
        sampling = sampling_of(request.sampling)
        results = (
            self._streamed(prompts, sampling, samples_per_prompt)
            if request.stream_text
            else self._engine.generate(prompts, sampling, samples_per_prompt)
        )
        with self._under_way(), ExitStack() as waiting:
            waiting.enter_context(self._waits(len(prompts) * samples_per_prompt))
            async with aclosing(results):
                async for result in results:
                    waiting.close()
                    if isinstance(result, policy_pb2.GenerateResponse):
                        yield result
                        continue
                    self._sampled(result, start)
                    yield sample_response(result)

    async def Score(
        self, request: policy_pb2.PolicyServiceScoreRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.PolicyServiceScoreResponse]:
        """Log-probs of the tokens of prompts."""
        self._admit(request.required_weight_version)
        prompts = prompts_of(request.prompts)
        with self._under_way():
            version = self._engine.info().weight_version
            scored = await self._engine.score_prompts(prompts, request.top_logprobs)
            for one in scored:
                if isinstance(one, ContextTooLongError):
                    raise one
        for index, one in enumerate(scored):
            assert isinstance(one, ScoredPrompt)
            yield score_response(index, one, version)

    async def GetModelInfo(
        self, request: policy_pb2.PolicyServiceGetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> policy_pb2.PolicyServiceGetModelInfoResponse:
        """Which model and weight version is served."""
        return policy_pb2.PolicyServiceGetModelInfoResponse(model=model_info(self._engine.info()))

    async def _streamed(
        self, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int
    ) -> AsyncGenerator[GeneratedSample | policy_pb2.GenerateResponse, None]:
        """The samples, and before each the texts that it grew through: all, or what a slow client leaves time for."""
        # A sample, or the place of one that has grown since its text was sent.
        results: asyncio.Queue[GeneratedSample | tuple[int, int] | None] = asyncio.Queue()
        # One for each sample at most: every text holds the ones before it.
        grown: dict[tuple[int, int], policy_pb2.GenerateResponse] = {}

        def on_text(prompt_index: int, sample_index: int, text: str, new: Sequence[TokenPlace]) -> None:
            at = (prompt_index, sample_index)
            if at not in grown:
                grown[at] = policy_pb2.GenerateResponse(prompt_index=prompt_index, sample_index=sample_index)
                results.put_nowait(at)
            grown[at].text_so_far = text
            grown[at].new_places.extend(map(place, new))

        async def sample() -> None:
            try:
                async with aclosing(self._engine.generate(prompts, sampling, samples_per_prompt, on_text)) as samples:
                    async for one in samples:
                        results.put_nowait(one)
            finally:
                results.put_nowait(None)

        task = asyncio.create_task(sample())
        try:
            while (result := await results.get()) is not None:
                yield grown.pop(result) if isinstance(result, tuple) else result
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        """A call that the engine works on; what the engine refuses becomes a status."""
        self._requests += 1
        try:
            with self._gate.call(), self._works():
                yield
        except ContextTooLongError as error:
            message = f"needs {error.tokens} tokens with its answer, the model's context holds {error.limit}"
            raise invalid_fields([Violation(f"prompts[{error.index}]", message, "TOO_LONG")]) from error
        except RefusedRequestError as error:
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        except ConnectionError as error:
            # Of an endpoint that answers in the place of a model of this process.
            raise StatusError(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        except BudgetSpentError as error:
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
        finally:
            self._requests -= 1

    def _admit(self, required_version: int) -> None:
        self._gate.require_open()
        held = self._engine.info().weight_version
        if held < required_version:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"version {required_version} is required, this replica holds {held}",
            )
        if self._requests >= self._max_requests:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._requests} requests are under way already",
                retry_after_seconds=5,
            )

    def _waits(self, samples: int) -> AbstractContextManager[None]:
        """Entered when so many samples are asked for, left when the first text is there."""
        return nullcontext()

    def _works(self) -> AbstractContextManager[None]:
        """Around each call that the engine works on."""
        return nullcontext()

    def _sampled(self, sample: GeneratedSample, start: float) -> None:
        """For each sample of a call that came at ``start``, by ``time.monotonic``."""

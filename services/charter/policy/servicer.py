"""PolicyService: from requests to the engine, and samples back as they finish."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import grpc
import numpy as np

from charter.inference.engine import (
    ContextTooLongError,
    Engine,
    Finish,
    GeneratedSample,
    Prompt,
    RefusedRequestError,
    Sampling,
)
from charter.policy import metrics
from charter.rpc import tracing
from charter.rpc.errors import StatusError
from charter.rpc.gate import Gate
from charter.rpc.messages import chat_messages
from charter.rpc.tensors import to_tensor
from charter.v1 import policy_pb2, policy_pb2_grpc
from charter.weights.receiver import model_info

_FINISH_REASONS = {Finish.EOS: policy_pb2.FINISH_REASON_EOS, Finish.LENGTH: policy_pb2.FINISH_REASON_LENGTH}


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """Serves one engine. Takes calls while ``gate`` is open, and at most ``max_requests`` at a time."""

    def __init__(self, engine: Engine, max_requests: int, gate: Gate) -> None:
        self._engine = engine
        self._max_requests = max_requests
        self._requests = 0
        self._gate = gate
        metrics.REQUEST_LIMIT.set(max_requests)
        for finish in Finish:
            metrics.SAMPLES.labels(finish.value)

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        """Sample answers and send each when it is finished. A client that leaves frees its place in the engine."""
        self._admit(request)
        prompts = [_prompt(prompt, place) for place, prompt in enumerate(request.prompts)]
        samples_per_prompt = request.samples_per_prompt if request.HasField("samples_per_prompt") else 1
        start = time.monotonic()
        waiting = True
        self._requests += 1
        metrics.REQUESTS.inc()
        metrics.REQUEST_SAMPLES.observe(len(prompts) * samples_per_prompt)
        metrics.WAITING_REQUESTS.inc()
        sampling = _sampling(request)
        results = (
            self._streamed(prompts, sampling, samples_per_prompt)
            if request.stream_text
            else self._engine.generate(prompts, sampling, samples_per_prompt)
        )
        try:
            with self._gate.call():
                async with aclosing(results):
                    async for result in results:
                        if waiting:
                            waiting = False
                            metrics.WAITING_REQUESTS.dec()
                        if isinstance(result, policy_pb2.GenerateResponse):
                            yield result
                            continue
                        self._count(result, start)
                        yield _response(result)
        except ContextTooLongError as error:
            message = (
                f"prompts[{error.index}] with max_new_tokens needs {error.tokens} tokens, "
                f"the model's context holds {error.limit}"
            )
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, message) from error
        except RefusedRequestError as error:
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        finally:
            self._requests -= 1
            metrics.REQUESTS.dec()
            if waiting:
                metrics.WAITING_REQUESTS.dec()

    async def GetModelInfo(
        self, request: policy_pb2.PolicyServiceGetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> policy_pb2.PolicyServiceGetModelInfoResponse:
        """Which model and weight version is served."""
        return policy_pb2.PolicyServiceGetModelInfoResponse(model=model_info(self._engine.info()))

    async def _streamed(
        self, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int
    ) -> AsyncGenerator[GeneratedSample | policy_pb2.GenerateResponse, None]:
        """The samples, and before each the texts that it grew through."""
        results: asyncio.Queue[GeneratedSample | policy_pb2.GenerateResponse | None] = asyncio.Queue()

        def on_text(prompt_index: int, sample_index: int, text: str) -> None:
            results.put_nowait(
                policy_pb2.GenerateResponse(prompt_index=prompt_index, sample_index=sample_index, text_so_far=text)
            )

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
                yield result
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _admit(self, request: policy_pb2.GenerateRequest) -> None:
        self._gate.require_open()
        held = self._engine.info().weight_version
        if held < request.required_weight_version:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"version {request.required_weight_version} is required, this replica holds {held}",
            )
        if self._requests >= self._max_requests:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._requests} requests are under way already",
                retry_after_seconds=5,
            )

    def _count(self, sample: GeneratedSample, start: float) -> None:
        exemplar = tracing.exemplar()
        metrics.SAMPLE_SECONDS.observe(time.monotonic() - start, exemplar)
        if sample.first_token_time is not None:
            metrics.FIRST_TOKEN_SECONDS.observe(sample.first_token_time - start, exemplar)
        metrics.GENERATED_TOKENS.inc(len(sample.token_ids))
        metrics.PROMPT_TOKENS.inc(len(sample.prompt_token_ids))
        metrics.SAMPLE_TOKENS.observe(len(sample.token_ids))
        metrics.SAMPLES.labels(sample.finish.value).inc()


def _prompt(prompt: policy_pb2.GenerationPrompt, place: int) -> Prompt:
    if prompt.text and (prompt.messages or prompt.as_user):
        problem = "has text, and messages or as_user beside it"
        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, f"prompts[{place}]: {problem}")
    if not (prompt.text or prompt.messages or prompt.as_user):
        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, f"prompts[{place}].messages: needs at least 1 items, has 0")
    return Prompt(
        chat_messages(prompt.messages),
        seed=prompt.seed if prompt.HasField("seed") else None,
        text=prompt.text,
        as_user=prompt.as_user,
    )


def _sampling(request: policy_pb2.GenerateRequest) -> Sampling:
    parameters = request.sampling
    return Sampling(
        max_new_tokens=parameters.max_new_tokens,
        temperature=parameters.temperature if parameters.HasField("temperature") else 1.0,
        top_p=parameters.top_p if parameters.HasField("top_p") else 1.0,
        seed=parameters.seed if parameters.HasField("seed") else None,
    )


def _response(sample: GeneratedSample) -> policy_pb2.GenerateResponse:
    return policy_pb2.GenerateResponse(
        prompt_index=sample.prompt_index,
        sample_index=sample.sample_index,
        sample=policy_pb2.Sample(
            text=sample.text,
            token_ids=sample.token_ids,
            logprobs=to_tensor(np.asarray(sample.logprobs, dtype=np.float32)),
            finish_reason=_FINISH_REASONS[sample.finish],
            version_spans=[
                policy_pb2.VersionSpan(start=span.start, end=span.end, weight_version=span.version)
                for span in sample.version_spans
            ],
            prompt_token_ids=sample.prompt_token_ids,
        ),
    )

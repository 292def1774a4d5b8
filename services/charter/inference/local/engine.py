"""The embedded engine: a Hugging Face causal model in this process, on CPU or CUDA."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from transformers import PreTrainedModel

from charter.inference.answer_end import before_stop, begun, ending
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import (
    AnswerLogLikelihood,
    ChoiceLogprobs,
    ContextTooLongError,
    EngineInfo,
    GeneratedSample,
    OnText,
    Prompt,
    Sampling,
    ScoredPrompt,
    TokenPlace,
    VersionSpan,
)
from charter.inference.joined_calls import JoinedCalls
from charter.inference.local import model as torch_model
from charter.inference.local.cpu_memory import trim_freed_memory
from charter.inference.local.sampling import Row, Way, sample_rows, way_to_sample
from charter.inference.local.scoring import Answer, Places, Scorer

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Call:
    """One generate call under way. The torch thread puts samples, or the error that ended them, into ``done``."""

    sampling: Sampling
    seeded: bool
    loop: asyncio.AbstractEventLoop
    done: asyncio.Queue[GeneratedSample | BaseException] = field(default_factory=asyncio.Queue)
    on_text: OnText | None = None
    cancelled: bool = False

    def put(self, result: GeneratedSample | BaseException) -> None:
        """Hand over from the torch thread."""
        self.loop.call_soon_threadsafe(self.done.put_nowait, result)


@dataclass(slots=True, eq=False)
class _Task:
    """One answer that a call waits for."""

    call: _Call
    prompt: Prompt
    prompt_index: int
    sample_index: int
    row: Row


class TransformersEngine:
    """Serves one model from one torch thread; everything that touches the model runs there, in turn.

    Generate calls that wait at the same time with equal sampling parameters and no seed share batches. A
    seeded call has its own batches: the same call gives the same samples on the same weights. Scoring calls that wait
    at the same time are computed as one. ``max_batch_tokens`` bounds a batch (prompts and answers, padding included)
    and so the KV cache. With ``share_prefixes`` texts that begin alike are computed as one tree of tokens.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_batch_tokens: int = 16384,
        share_prefixes: bool = True,
    ) -> None:
        self._name = model
        self._device = device
        self._dtype = dtype
        self._max_batch_tokens = max_batch_tokens
        self._share_prefixes = share_prefixes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch")
        self._waiting: list[_Task] = []  # Touched on the event loop only.
        self._stopping = False
        self._sampling_turn = asyncio.Lock()
        # By how many of the likeliest tokens are asked for.
        self._placing = JoinedCalls(self._place, lambda prompt: prompt.length, max_batch_tokens)
        # By the choices whose log-probs are asked for; none for answers.
        self._scoring = JoinedCalls(self._score, lambda answer: answer.length, max_batch_tokens)
        self._weights = (0, "")  # Version and digest, replaced together.
        self._parameters = 0
        self._max_context = 0
        self._model: PreTrainedModel
        self._home: torch.device
        self._scorer: Scorer
        self._way: Way
        self._chat: ChatTokenizer
        self._generator = torch.Generator()  # Of the calls without a seed.

    async def start(self) -> None:
        """Load the model, and find out how to compute it fast and right. Raises ``ValueError`` where it cannot be."""
        self._chat = await asyncio.to_thread(ChatTokenizer.load, self._name)
        loaded = await self._run(torch_model.load_model, self._name, self._device, self._dtype)
        self._model = loaded.model
        self._generator.seed()
        self._home = self._model.device
        self._parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self._max_context = torch_model.max_context_tokens(self._model.config)
        self._scorer = await self._run(self._new_scorer, loaded)
        self._way = await self._run(way_to_sample, self._model, self._chat.pad_id, share=self._scorer.shares)

    async def stop(self) -> None:
        """Free the model. Calls under way fail with ``RuntimeError``."""
        self._stopping = True
        await asyncio.to_thread(self._thread.shutdown)
        self.__dict__.pop("_scorer", None)
        self.__dict__.pop("_model", None)

    def info(self) -> EngineInfo:
        """What is served now."""
        return EngineInfo(self._name, "transformers", *self._weights, self._parameters, self._max_context)

    async def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        samples_per_prompt: int = 1,
        on_text: OnText | None = None,
    ) -> AsyncGenerator[GeneratedSample, None]:
        """Sample answers, each yielded when it is finished. See ``Engine.generate``."""
        encoded = await self._encode(prompts)
        most_tokens = sampling.most_tokens(encoded, self._max_context)
        seeded = sampling.seed is not None or any(prompt.seed is not None for prompt in prompts)
        call = _Call(sampling, seeded, asyncio.get_running_loop(), on_text=on_text)

        def row(prompt_index: int, sample_index: int) -> Row:
            seed = sampling.sample_seed(prompts[prompt_index], prompt_index, sample_index)
            generator = self._generator if seed is None else torch.Generator().manual_seed(seed)
            return Row(
                encoded[prompt_index],
                lambda: not (call.cancelled or self._stopping),
                generator,
                most_tokens[prompt_index],
                lambda ids: bool(sampling.stop) and before_stop(self._chat.decode(ids), sampling.stop) is not None,
            )

        tasks = [
            _Task(call, prompts[prompt_index], prompt_index, sample_index, row(prompt_index, sample_index))
            for prompt_index in range(len(prompts))
            for sample_index in range(samples_per_prompt)
        ]
        tasks.sort(key=lambda task: len(task.row.prompt_ids), reverse=True)
        self._waiting += tasks
        sampling_task = asyncio.create_task(self._sample_waiting(call))
        try:
            for _ in tasks:
                result = await call.done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
            await sampling_task
        finally:
            call.cancelled = True
            self._waiting = [task for task in self._waiting if task.call is not call]

    async def choice_logprobs(
        self, prompts: Sequence[Prompt], choices: Sequence[str]
    ) -> list[ChoiceLogprobs | ContextTooLongError]:
        """Log-probs of each choice as the next token. See ``Engine.choice_logprobs``."""
        asked = await asyncio.to_thread(self._chat.choice_prompts, prompts, choices)
        items = [Answer(index, ids, ()) for index, (ids, _) in enumerate(asked)]
        results: dict[int, ChoiceLogprobs] = {}
        for choice_ids in dict.fromkeys(choice_ids for _, choice_ids in asked):
            same = [item for item, (_, others) in zip(items, asked, strict=True) if others == choice_ids]
            fitting = [item for item in same if item.length + 1 <= self._max_context]
            if fitting:
                rows = await self._scoring.run(choice_ids, fitting)
                for item, logprobs in zip(fitting, rows, strict=True):
                    results[item.index] = ChoiceLogprobs(logprobs, len(item.prompt_ids))
        return [results.get(item.index) or self._error(item, extra=1) for item in items]

    async def answer_loglikelihoods(
        self, items: Sequence[tuple[Prompt, str]]
    ) -> list[AnswerLogLikelihood | ContextTooLongError]:
        """Log-likelihood of each answer after its prompt. See ``Engine.answer_loglikelihoods``."""
        encoded = await self._encode([prompt for prompt, _ in items])
        texts = await asyncio.to_thread(lambda: [self._chat.answer_ids(text) for _, text in items])
        answers = [Answer(i, ids, text) for i, (ids, text) in enumerate(zip(encoded, texts, strict=True))]
        fitting = [answer for answer in answers if answer.length <= self._max_context]
        totals = {answer.index: 0.0 for answer in fitting}  # An empty answer keeps its 0.
        written = [answer for answer in fitting if answer.answer_ids]
        if written:
            sums = await self._scoring.run((), written)
            totals.update((answer.index, total) for answer, (total,) in zip(written, sums, strict=True))
        return [
            AnswerLogLikelihood(totals[answer.index], len(answer.answer_ids), len(answer.prompt_ids))
            if answer.index in totals
            else self._error(answer)
            for answer in answers
        ]

    async def score_prompts(
        self, prompts: Sequence[Prompt], top_logprobs: int
    ) -> list[ScoredPrompt | ContextTooLongError]:
        """Log-probs of every token of each prompt. See ``Engine.score_prompts``."""
        items = [Answer(index, ids, ()) for index, ids in enumerate(await self._encode(prompts))]
        fitting = [item for item in items if item.length <= self._max_context]
        scored = await self._placing.run(max(1, top_logprobs), fitting) if fitting else []
        results = {
            item.index: self._scored(item.prompt_ids, places, top_logprobs)
            for item, places in zip(fitting, scored, strict=True)
        }
        return [results.get(item.index) or self._error(item) for item in items]

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Serve the weights of a file from now on; waits for the batch under way. See ``Engine.load_weights``.

        The file is read while batches go on, so that for a moment main memory holds it, the old weights and the new.
        """
        new = await asyncio.to_thread(torch_model.read_weights, self._model, path)

        def swap() -> float:
            start = time.monotonic()
            torch_model.swap_weights(self._model, new)
            self._weights = (version, digest)
            return time.monotonic() - start

        paused = await self._run(swap)
        await asyncio.to_thread(trim_freed_memory)
        return paused

    async def sleep(self) -> None:
        """Move the model to main memory, after the batch under way. See ``Engine.sleep``."""
        await self._run(torch_model.move, self._model, torch.device("cpu"))

    async def wake(self) -> None:
        """Move it back to where it was loaded. See ``Engine.wake``."""
        await self._run(torch_model.move, self._model, self._home)

    async def _sample_waiting(self, call: _Call) -> None:
        """Run batches until none of this call's answers waits; they may hold other calls' answers too."""
        while True:
            # Batches are put together when the thread is free for them, not before: later calls can still join.
            async with self._sampling_turn:
                batch = self._next_batch(call)
                if not batch:
                    return
                try:
                    await self._run(self._sample_batch, batch)
                except Exception as error:  # noqa: BLE001 (every call in the batch raises it)
                    for failed in {task.call for task in batch}:
                        failed.done.put_nowait(error)

    def _next_batch(self, call: _Call) -> list[_Task]:
        """Take the oldest waiting answers that can share a batch with this call's; none when it waits for none."""
        if not any(task.call is call for task in self._waiting):
            return []
        batch: list[_Task] = []
        width = 0
        for task in self._waiting:
            shared = not (call.seeded or task.call.seeded) and task.call.sampling == call.sampling
            if task.call is call or shared:
                width = max(width, len(task.row.prompt_ids) + task.row.most_tokens)
                if batch and (len(batch) + 1) * width > self._max_batch_tokens:
                    break
                batch.append(task)
        taken = set(batch)
        self._waiting = [task for task in self._waiting if task not in taken]
        return batch

    def _sample_batch(self, batch: Sequence[_Task]) -> None:
        """Write the answers of a batch; on the torch thread."""
        tasks = {task.row: task for task in batch}
        version, _ = self._weights

        def finished(row: Row) -> None:
            task = tasks[row]
            text, finish = ending(self._chat, task.prompt, row.token_ids, task.call.sampling.stop)
            task.call.put(
                GeneratedSample(
                    prompt_index=task.prompt_index,
                    sample_index=task.sample_index,
                    text=text,
                    token_ids=tuple(row.token_ids),
                    logprobs=tuple(row.logprobs),
                    finish=finish,
                    version_spans=(VersionSpan(0, len(row.token_ids), version),),
                    prompt_token_ids=tuple(row.prompt_ids),
                    places=self._places(row, 0),
                    first_token_time=row.first_token_time,
                )
            )

        def grown(row: Row) -> None:
            task = tasks[row]
            if task.call.on_text is not None:
                text = begun(self._chat, task.prompt, row.token_ids, task.call.sampling.stop)
                new = self._places(row, len(row.token_ids) - 1)
                task.call.loop.call_soon_threadsafe(task.call.on_text, task.prompt_index, task.sample_index, text, new)

        rows = [task.row for task in batch if task.row.wanted()]
        if rows:
            sampling, stop_ids = batch[0].call.sampling, self._chat.stop_ids
            sample_rows(self._model, rows, sampling, stop_ids, self._chat.pad_id, finished, grown, way=self._way)
        self._require_running()

    async def _score(self, choices: tuple[int, ...], answers: Sequence[Answer]) -> list[tuple[float, ...]]:
        """The log-probs of the choices as the next token of each prompt; without choices, that of each answer."""
        if not choices:
            return [(total,) for total in await self._run(self._scorer.answer_logprobs, answers)]
        prompts = [answer.prompt_ids for answer in answers]
        rows = await self._run(self._scorer.next_token_logprobs, prompts, choices)
        return [tuple(row) for row in rows.tolist()]

    async def _place(self, top: int, prompts: Sequence[Answer]) -> list[Places]:
        """The log-probs of the prompts' own tokens, and of the likeliest."""
        return await self._run(self._scorer.place_logprobs, [one.prompt_ids for one in prompts], top)

    def _scored(self, ids: Sequence[int], places: Places, top: int) -> ScoredPrompt:
        own = (None, *places.logprobs)
        before = ([], *places.likeliest[:-1])
        return ScoredPrompt(
            self._chat.prompt_text(ids),
            tuple(self._chat.place(*place[:2], place[2][:top]) for place in zip(ids, own, before, strict=True)),
            self._chat.with_texts(places.likeliest[-1]),
            places.likeliest[-1][0][0] in self._chat.stop_ids,
        )

    def _places(self, row: Row, start: int) -> tuple[TokenPlace, ...]:
        """The tokens of a row from a place on, where they were asked for."""
        written = zip(row.token_ids[start:], row.logprobs[start:], row.tops[start:], strict=False)
        return tuple(self._chat.place(*place) for place in written)

    def _new_scorer(self, loaded: torch_model.LoadedModel) -> Scorer:
        return Scorer(loaded, self._chat.pad_id, self._max_batch_tokens, share=self._share_prefixes)

    async def _encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return await asyncio.to_thread(self._chat.prompts_ids, prompts)

    def _error(self, item: Answer, extra: int = 0) -> ContextTooLongError:
        return ContextTooLongError(item.index, item.length + extra, self._max_context)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run on the torch thread, after what was asked for before. Raises ``RuntimeError`` once the engine stops."""

        def work() -> R:
            self._require_running()
            return function(*args, **kwargs)

        self._require_running()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _require_running(self) -> None:
        if self._stopping:
            raise RuntimeError("the engine is stopping")

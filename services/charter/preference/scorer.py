"""Serves a preference model: batches what waits across requests, and runs torch in a thread of its own."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import torch

from charter.chat import ChatMessage
from charter.inference.engine import EngineInfo, Prompt
from charter.inference.local.model import move
from charter.inference.local.prefix_tree import tree_tokens
from charter.inference.preference_model import PreferenceModel, encode, encode_answer
from charter.preference import metrics
from charter.preference.batching import Size, choose_batch
from charter.rpc.errors import StatusError

logger = logging.getLogger("charter.preference")

# Tokens of one forward pass.
TOKENS_PER_BATCH = 4096
# A batch is chosen among so many that came first: looking at all that may wait would hold up the event loop.
_CHOSEN_AMONG = 4096
# More than this and a request is refused: it would only wait.
MOST_WAITING = 65_536


class OverloadedError(RuntimeError):
    """Too many answers wait already."""


class UnusableInputsError(ValueError):
    """Some inputs cannot be scored. ``problems`` are index, what is wrong, and its ``FailureKind`` without prefix."""

    def __init__(self, problems: Sequence[tuple[int, str, str]]) -> None:
        super().__init__("; ".join(problem for _, problem, _ in problems))
        self.problems = tuple(problems)


def is_fitted(model: str) -> bool:
    """Whether it is a folder that ``PreferenceModel.save`` wrote, not a causal language model to start from."""
    return (Path(model) / "charter.json").is_file()


@dataclass(frozen=True, slots=True)
class ScoreInput:
    """A conversation and an answer to it."""

    messages: tuple[ChatMessage, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """Score of the input with this index, and the weights that gave it."""

    index: int
    value: float
    # What each member of the ensemble says.
    members: tuple[float, ...]
    weight_version: int


@dataclass(eq=False, slots=True)
class _Waiting:
    """One answer that waits; its score or its failure goes to the queue of its request."""

    index: int
    messages: tuple[ChatMessage, ...]
    token_ids: list[int]
    # Of these, the ones behind the conversation.
    answer_tokens: int
    results: "asyncio.Queue[Score | BaseException]"
    # By time.monotonic().
    since: float


class Scorer:
    """A preference model behind a queue. All methods are called on one event loop and never block it.

    ``model`` is a folder written by ``PreferenceModel.save``, which is served at once as version 0, or a causal
    language model (folder or hub id), which gives the architecture and tokenizer and waits for its first weights.
    ``name`` is the metrics' label. ``computing`` has one thread, which runs torch.
    """

    def __init__(self, model: str, name: str, computing: ThreadPoolExecutor) -> None:
        self._source = model
        self._name = name
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Tokenizers and torch must each stay in one thread.
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")
        self._computing = computing
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._batches: asyncio.Task[None] | None = None
        self._model: PreferenceModel | None = None
        self._served = (0, "")
        self._fitted = False
        metrics.register(name)
        metrics.WAITING_LIMIT.labels(name).set(MOST_WAITING)

    async def start(self) -> None:
        """Load the model and run it once. Raises ``OSError`` or ``ValueError`` when it cannot be loaded."""
        loop = asyncio.get_running_loop()
        self._model = await loop.run_in_executor(self._computing, self._load)
        self._batches = loop.create_task(self._run_batches(), name="preference batches")

    async def stop(self) -> None:
        """Free the model."""
        if self._batches is not None:
            self._batches.cancel()
            await asyncio.gather(self._batches, return_exceptions=True)
        self._fail(self._waiting, StatusError(grpc.StatusCode.UNAVAILABLE, "the preference service is stopping"))
        await asyncio.to_thread(self._tokenizing.shutdown)
        self._model = None

    def info(self) -> EngineInfo:
        """What is served now."""
        model = self._loaded()
        version, digest = self._served
        return EngineInfo(
            model=self._source,
            engine="torch",
            weight_version=version,
            weight_digest=digest,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            max_context_tokens=model.max_context_tokens,
        )

    @property
    def fitted(self) -> bool:
        """Fitted weights are being served."""
        return self._fitted

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Serve the weights of a safetensors file from the next batch on, as ``version``; see ``Engine.load_weights``.

        Raises ``WeightMismatchError`` and changes nothing when they do not fit.
        """

        def load() -> float:
            start = time.monotonic()
            self._loaded().load_tensors(path)
            self._served = (version, digest)
            self._fitted = True
            return time.monotonic() - start

        paused = await asyncio.get_running_loop().run_in_executor(self._computing, load)
        logger.info("serving weights", extra={"version": version, "sha256": digest})
        return paused

    async def sleep(self) -> None:
        """Move the model to main memory, after the batch under way. See ``Engine.sleep``."""
        await self._move(torch.device("cpu"))

    async def wake(self) -> None:
        """Move it back. See ``Engine.wake``."""
        await self._move(self._device)

    async def _move(self, device: torch.device) -> None:
        await asyncio.get_running_loop().run_in_executor(self._computing, move, self._loaded(), device)

    async def score(self, inputs: Sequence[ScoreInput]) -> AsyncIterator[Score]:
        """Scores in the order in which they are finished.

        They mean something only when ``fitted``. Raises ``OverloadedError``, or ``UnusableInputsError`` for inputs that
        do not fit the context or that the chat template refuses, each before anything is scored.
        """
        if len(self._waiting) + len(inputs) > MOST_WAITING:
            raise OverloadedError
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._tokenizing, self._encode, inputs)
        results: asyncio.Queue[Score | BaseException] = asyncio.Queue()
        now = time.monotonic()
        mine = [
            _Waiting(index, one.messages, [*conversation, *answer], len(answer), results, now)
            for index, (one, (conversation, answer)) in enumerate(zip(inputs, encoded, strict=True))
        ]
        self._add(mine)
        try:
            for _ in mine:
                result = await results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            # The caller may have gone away before everything was scored.
            self._remove(mine)

    def _load(self) -> PreferenceModel:
        if is_fitted(self._source):
            model = PreferenceModel.load(Path(self._source))
            self._fitted = True
        else:
            model = PreferenceModel.from_causal_lm(self._source, seed=0)
        model = model.eval().to(self._device)
        self._forward(model, [encode(model.tokenizer, (ChatMessage("user", "Hello"),), "Hello")])
        return model

    def _loaded(self) -> PreferenceModel:
        if self._model is None:
            raise StatusError(
                grpc.StatusCode.UNAVAILABLE, "the preference model is not loaded yet", retry_after_seconds=5
            )
        return self._model

    def _encode(self, inputs: Sequence[ScoreInput]) -> list[tuple[list[int], list[int]]]:
        """Token ids of each conversation and answer."""
        model = self._loaded()
        conversations: dict[tuple[ChatMessage, ...], list[int]] = {}
        encoded: list[tuple[list[int], list[int]]] = []
        problems: list[tuple[int, str, str]] = []
        for index, one in enumerate(inputs):
            try:
                if one.messages not in conversations:
                    conversations[one.messages] = model.tokenizer.prompt_ids(Prompt(one.messages))
            except ValueError as error:
                problems.append((index, f"cannot be read: {error}", "REFUSED"))
                continue
            conversation, answer = conversations[one.messages], encode_answer(model.tokenizer, one.answer)
            tokens = len(conversation) + len(answer)
            if tokens > model.max_context_tokens:
                limit = f"needs {tokens} tokens, the model's context holds {model.max_context_tokens}"
                problems.append((index, limit, "TOO_LONG"))
            encoded.append((conversation, answer))
        if problems:
            raise UnusableInputsError(problems)
        return encoded

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            # Until a batch is chosen, a failure is that of all it would be chosen from: nobody may wait for ever.
            batch = self._waiting[:_CHOSEN_AMONG]
            try:
                batch = self._choose(batch)
                self._remove(batch)
                scores, version = await loop.run_in_executor(
                    self._computing, self._compute, [one.token_ids for one in batch]
                )
            except Exception as error:  # noqa: BLE001 - raised in each request that waits for this batch
                self._remove(batch)
                self._fail(batch, error)
                continue
            for one, (value, members) in zip(batch, scores, strict=True):
                one.results.put_nowait(Score(one.index, value, members, version))

    def _choose(self, first: list[_Waiting]) -> list[_Waiting]:
        """The next batch, of those that wait longest."""
        sizes = [Size(one.messages, len(one.token_ids), one.answer_tokens) for one in first]
        batch = [first[index] for index in choose_batch(sizes, TOKENS_PER_BATCH)]
        waited_until = time.monotonic()
        for one in batch:
            metrics.WAIT_SECONDS.labels(self._name).observe(waited_until - one.since)
        return batch

    def _compute(self, batch: list[list[int]]) -> tuple[list[tuple[float, tuple[float, ...]]], int]:
        start = time.monotonic()
        model = self._loaded()
        scores = self._forward(model, batch)
        metrics.BATCH_SECONDS.labels(self._name).observe(time.monotonic() - start)
        metrics.BATCH_ANSWERS.labels(self._name).observe(len(batch))
        metrics.SCORES.labels(self._name).inc(len(batch))
        tokens = sum(len(one) for one in batch)
        metrics.TOKENS.labels(self._name).inc(tokens)
        if model.shares:
            metrics.SHARED.labels(self._name).inc(tokens - tree_tokens(batch))
        return scores, self._served[0]

    def _forward(self, model: PreferenceModel, batch: list[list[int]]) -> list[tuple[float, tuple[float, ...]]]:
        """Score and member scores of each answer."""
        with torch.inference_mode():
            members = model.member_scores(batch)
            scores = model.aggregate(members)
        return list(zip(scores.tolist(), map(tuple, members.tolist()), strict=True))

    def _add(self, new: Sequence[_Waiting]) -> None:
        self._waiting.extend(new)
        self._waiting_changed()

    def _remove(self, gone: Sequence[_Waiting]) -> None:
        removed = set(map(id, gone))
        self._waiting = [one for one in self._waiting if id(one) not in removed]
        self._waiting_changed()

    def _waiting_changed(self) -> None:
        metrics.WAITING.labels(self._name).set(len(self._waiting))
        if self._waiting:
            self._arrived.set()
        else:
            self._arrived.clear()

    def _fail(self, waiting: Sequence[_Waiting], error: Exception) -> None:
        for one in waiting:
            one.results.put_nowait(error)

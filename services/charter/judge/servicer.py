"""JudgeService: from requests to the methods, and results back as they finish."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import grpc

from charter.hashing import stable_number
from charter.inference.engine import BudgetSpentError, Engine, Sampling
from charter.judge import judging, metrics, rating, replies, writing
from charter.judge.calibration import CalibrationSet
from charter.judge.calibration_file import CalibrationFile
from charter.judge.drafts import Draft
from charter.judge.judging import Task, Way, usage_proto
from charter.judge.methods import choice, method_of
from charter.judge.methods.method import Method
from charter.judge.pairs import Pair
from charter.judge.principles import principles_for
from charter.judge.responses import classify_response, score_response
from charter.judge.streaming import as_finished
from charter.judge.watch import WatchedConstitution
from charter.rpc import tracing
from charter.rpc.errors import StatusError, invalid_fields
from charter.rpc.gate import Gate
from charter.rpc.messages import chat_messages
from charter.rpc.validation import Violation
from charter.v1 import judge_pb2, judge_pb2_grpc
from charter.weights.receiver import model_info

A = TypeVar("A", bound=rating.Told)
T = TypeVar("T")
R = TypeVar("R")

_MAX_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Judge:
    """What the servicer judges with."""

    engine: Engine
    constitution: WatchedConstitution
    default_method: Method
    # By method, for what nothing was fitted for.
    defaults: dict[str, CalibrationSet]
    fitted: CalibrationFile | None
    # Of the file of ``fitted``.
    calibration_digest: str
    # Items of a request that go to the engine in one call. One for a remote engine: a failure then costs one label.
    items_per_call: int
    # Calls of one request that wait for the engine at the same time.
    calls_at_once: int
    # The model was given its chat template, and has not learned it: it writes by going on with plain text.
    plain: bool = False


class JudgeServicer(judge_pb2_grpc.JudgeServiceServicer):
    """Each RPC by its contract in ``judge.proto``, while ``gate`` is open.

    Each call keeps the constitution that it started with.
    """

    def __init__(self, judge: Judge, gate: Gate) -> None:
        self._judge = judge
        self._gate = gate
        # Methods that the model cannot do, and why, and why it cannot rate; known when it is ready.
        self.unsupported: dict[str, str] = {}
        self.rating_problem = ""

    async def Compare(
        self, request: judge_pb2.CompareRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[judge_pb2.CompareResponse, None]:
        """Label pairs."""
        self._admit([item.id for item in request.items])
        options, constitution = request.options, self._judge.constitution.current
        way = self._way(options)
        tasks = [
            (
                item.id,
                Task(
                    Pair(chat_messages(item.prompt), item.answer_a, item.answer_b),
                    principles_for(item.id, item.dimension, options, constitution),
                ),
            )
            for item in request.items
        ]
        self._refuse_other_principles(
            way.method, options, {item.dimension or options.dimension for item in request.items}
        )
        digest = "" if options.instruction else constitution.digest
        model = self._judge.engine.info().model

        async def label(piece: Sequence[tuple[str, Task]]) -> list[judge_pb2.CompareResponse]:
            start = time.monotonic()
            judgements = await judging.judge(self._judge.engine, [task for _, task in piece], way)
            each = (time.monotonic() - start) / len(piece)
            for judgement in judgements:
                metrics.COMPARISON_SECONDS.labels(way.method.name).observe(each)
                judgement.model = model
                judgement.constitution_digest = digest
            return [
                judge_pb2.CompareResponse(item_id=item_id, judgement=judgement)
                for (item_id, _), judgement in zip(piece, judgements, strict=True)
            ]

        async with aclosing(self._streamed("Compare", tasks, label)) as responses:
            async for response in responses:
                yield response

    async def Score(
        self, request: judge_pb2.JudgeServiceScoreRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[judge_pb2.JudgeServiceScoreResponse, None]:
        """Rate answers."""
        self._admit([item.id for item in request.items])
        if self.rating_problem:
            raise self._unable(f"rate answers: {self.rating_problem}")
        async with aclosing(self._about_answers("Score", request, rating.rate, score_response)) as responses:
            async for response in responses:
                yield response

    async def Classify(
        self, request: judge_pb2.ClassifyRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[judge_pb2.ClassifyResponse, None]:
        """Say what answers do with their requests."""
        self._admit([item.id for item in request.items])
        if problem := self.unsupported.get(choice.METHOD.name):
            raise self._unable(f"classify answers: {problem}")
        async with aclosing(self._about_answers("Classify", request, replies.classify, classify_response)) as responses:
            async for response in responses:
                yield response

    async def Critique(
        self, request: judge_pb2.CritiqueRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[judge_pb2.CritiqueResponse, None]:
        """Criticise answers."""
        drafts = self._drafts(request.items, request.options)

        async def write(piece: Sequence[tuple[str, Draft]]) -> list[judge_pb2.CritiqueResponse]:
            prompts = [writing.critique_prompt(draft, plain=self._judge.plain) for _, draft in piece]
            written = await writing.write(self._judge.engine, prompts, _sampling(request.limits))
            return [
                judge_pb2.CritiqueResponse(
                    item_id=item_id,
                    critique=one.text,
                    principle_id=draft.principle.id,
                    failure=one.failure,
                    failure_kind=one.kind,
                    cut_off=one.cut_off,
                    usage=_counted("critique", one),
                )
                for (item_id, draft), one in zip(piece, written, strict=True)
            ]

        async with aclosing(self._streamed("Critique", drafts, write)) as responses:
            async for response in responses:
                yield response

    async def Revise(
        self, request: judge_pb2.ReviseRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[judge_pb2.ReviseResponse, None]:
        """Rewrite answers."""
        drafts = self._drafts(request.items, request.options)

        async def write(piece: Sequence[tuple[str, Draft]]) -> list[judge_pb2.ReviseResponse]:
            prompts = [writing.revision_prompt(draft, plain=self._judge.plain) for _, draft in piece]
            written = await writing.write(self._judge.engine, prompts, _sampling(request.limits))
            return [
                judge_pb2.ReviseResponse(
                    item_id=item_id,
                    revision=one.text,
                    principle_id=draft.principle.id,
                    failure=one.failure,
                    failure_kind=one.kind,
                    cut_off=one.cut_off,
                    usage=_counted("revision", one),
                )
                for (item_id, draft), one in zip(piece, written, strict=True)
            ]

        async with aclosing(self._streamed("Revise", drafts, write)) as responses:
            async for response in responses:
                yield response

    async def GetConstitution(
        self, request: judge_pb2.GetConstitutionRequest, context: grpc.aio.ServicerContext
    ) -> judge_pb2.GetConstitutionResponse:
        """What is judged by now."""
        return judge_pb2.GetConstitutionResponse(constitution=self._judge.constitution.current.to_proto())

    async def GetModelInfo(
        self, request: judge_pb2.JudgeServiceGetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> judge_pb2.JudgeServiceGetModelInfoResponse:
        """Which model judges, and how unless told otherwise."""
        fitted, default = self._judge.fitted, self._judge.default_method
        return judge_pb2.JudgeServiceGetModelInfoResponse(
            model=model_info(self._judge.engine.info()),
            default_method=default.number,
            default_chain_of_thought=default.reasons,
            calibration=None
            if fitted is None
            else judge_pb2.AppliedCalibration(
                digest=self._judge.calibration_digest, fitted_prompts=fitted.fitted_prompts
            ),
            rating_problem=self.rating_problem,
        )

    def _admit(self, ids: Sequence[str]) -> None:
        self._gate.require_open()
        first: dict[str, int] = {}
        for index, item_id in enumerate(ids):
            if first.setdefault(item_id, index) != index:
                raise invalid_fields(
                    [Violation(f"items[{index}].id", f"{item_id!r} is also that of item {first[item_id]}")]
                )

    def _way(self, options: judge_pb2.JudgingOptions) -> Way:
        method = self._method(options)
        if method.name in self.unsupported:
            raise self._unable(f"judge by {method.name}: {self.unsupported[method.name]}")
        return Way(method, self._calibration(method, options))

    def _method(self, options: judge_pb2.JudgingOptions) -> Method:
        default = self._judge.default_method
        number = options.method or default.number
        reasons = options.chain_of_thought or (not options.method and default.reasons)
        try:
            return method_of(number, reasons)
        except KeyError:
            name = judge_pb2.JudgingMethod.Name(number).removeprefix("JUDGING_METHOD_")
            raise invalid_fields(
                [Violation("options.chain_of_thought", f"needs the method CHOICE, not {name}")]
            ) from None

    def _calibration(self, method: Method, options: judge_pb2.JudgingOptions) -> CalibrationSet:
        """What was fitted for this method by the constitution; the default for another method or an instruction."""
        fitted = self._judge.fitted
        found = fitted.of(method.name) if fitted is not None and not options.instruction else None
        if fitted is None or found is None:
            return self._judge.defaults[method.name]
        asked = options.ensemble_size if options.HasField("ensemble_size") and not options.principle_id else 1
        if fitted.ensemble_size not in (None, asked):
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the judge's calibration was fitted for {fitted.ensemble_size} principles a pair, and this request "
                f"asks for {asked}: ask for as many (judge.ensemble_size of a spec, --ensemble), or start the judge "
                f"without it, and fit one for {asked}",
            )
        return found

    def _refuse_other_principles(self, method: Method, options: judge_pb2.JudgingOptions, asked: set[str]) -> None:
        """Refuse a request that may draw, of these dimensions, a principle that the calibration was not fitted for."""
        fitted, constitution = self._judge.fitted, self._judge.constitution.current
        if fitted is None or fitted.of(method.name) is None or options.instruction:
            return
        if options.principle_id:
            candidates = [constitution.principle(options.principle_id)]
        else:
            candidates = [principle for dimension in asked for principle in constitution.of_dimension(dimension)]
        if all(map(fitted.covers, candidates)):
            return
        bound = f"principle {fitted.principle}" if fitted.principle else f"dimension {fitted.dimension}"
        raise StatusError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the judge's calibration was fitted for the {bound} alone, and this request asks for others: ask by "
            "that, or start the judge with a calibration for all of its constitution",
        )

    def _unable(self, to_what: str) -> StatusError:
        info = self._judge.engine.info()
        return StatusError(
            grpc.StatusCode.FAILED_PRECONDITION, f"{info.model} on engine {info.engine} cannot {to_what}"
        )

    def _by_principle(
        self, items: Sequence[judge_pb2.AnswerItem], options: judge_pb2.JudgingOptions
    ) -> list[tuple[str, list[rating.RatedAnswer]]]:
        """By item, the answer under each of its principles."""
        constitution = self._judge.constitution.current
        return [
            (
                item.id,
                [
                    rating.RatedAnswer(chat_messages(item.prompt), item.answer, principle)
                    for principle in principles_for(item.group or item.id, item.dimension, options, constitution)
                ],
            )
            for item in items
        ]

    def _drafts(
        self, items: Sequence[judge_pb2.AnswerItem], options: judge_pb2.JudgingOptions
    ) -> list[tuple[str, Draft]]:
        self._admit([item.id for item in items])
        _one_principle(options)
        constitution = self._judge.constitution.current
        return [
            (
                item.id,
                Draft(
                    chat_messages(item.prompt),
                    item.answer,
                    principles_for(item.group or item.id, item.dimension, options, constitution)[0],
                    item.critique,
                    _item_seed(item.id, options),
                ),
            )
            for item in items
        ]

    def _about_answers(
        self,
        rpc: str,
        request: judge_pb2.JudgeServiceScoreRequest | judge_pb2.ClassifyRequest,
        ask: Callable[[Engine, Sequence[rating.RatedAnswer]], Awaitable[list[A]]],
        response: Callable[[str, Sequence[rating.RatedAnswer], A], R],
    ) -> AsyncGenerator[R, None]:
        """What is said of each answer, the mean over its principles."""

        async def work(piece: Sequence[tuple[str, list[rating.RatedAnswer]]]) -> list[R]:
            asked = [answer for _, by_principle in piece for answer in by_principle]
            found = iter(await ask(self._judge.engine, asked))
            return [
                response(item_id, by_principle, rating.mean_of([next(found) for _ in by_principle]))
                for item_id, by_principle in piece
            ]

        return self._streamed(rpc, self._by_principle(request.items, request.options), work)

    async def _streamed(
        self, rpc: str, items: Sequence[T], work: Callable[[Sequence[T]], Awaitable[list[R]]]
    ) -> AsyncGenerator[R, None]:
        """Hand pieces of the request to the engine and yield what comes back."""
        start = time.monotonic()
        jobs = [partial(work, piece) for piece in _pieces(items, self._judge.items_per_call)]
        metrics.REQUEST_ITEMS.labels(rpc).observe(len(items))
        waiting = len(items)
        metrics.WAITING.inc(waiting)
        finished = as_finished(jobs, self._judge.calls_at_once)
        try:
            with self._gate.call():
                async with aclosing(finished):
                    async for responses in finished:
                        waiting -= len(responses)
                        metrics.WAITING.dec(len(responses))
                        for response in responses:
                            metrics.RESULT_SECONDS.labels(rpc).observe(time.monotonic() - start, tracing.exemplar())
                            yield response
        except BudgetSpentError as error:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{error}: start the judge with a larger token_budget, then resume the run",
            ) from error
        finally:
            metrics.WAITING.dec(waiting)


def _pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _one_principle(options: judge_pb2.JudgingOptions) -> None:
    if options.ensemble_size > 1:
        raise invalid_fields([Violation("options.ensemble_size", "only Compare and Score average over principles")])


def _item_seed(item_id: str, options: judge_pb2.JudgingOptions) -> int | None:
    """Of the text that is written about an item: the same in a request with fewer items, or with others."""
    return stable_number(str(options.seed), item_id) if options.seed else None


def _sampling(limits: judge_pb2.SamplingLimits) -> Sampling:
    return Sampling(
        max_new_tokens=limits.max_new_tokens if limits.HasField("max_new_tokens") else _MAX_NEW_TOKENS,
        temperature=limits.temperature if limits.HasField("temperature") else 1.0,
    )


def _counted(kind: str, written: writing.Written) -> judge_pb2.TokenUsage:
    usage = usage_proto(written.usage)
    metrics.TEXTS.labels(kind, "false" if written.failure else "true").inc()
    metrics.observe_tokens(usage)
    return usage

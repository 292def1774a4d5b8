"""Labels pairs: asks a judging method about each pair and each of its principles, and averages what it finds."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from charter.chat import ChatMessage
from charter.inference.engine import Engine
from charter.judge import metrics
from charter.judge.asking import ask_each
from charter.judge.calibration import CalibrationSet, Evidence
from charter.judge.methods import choice, mix
from charter.judge.methods.method import Find, Method
from charter.judge.pairs import Finding, Pair, Question, Usage, total
from charter.judge.rating import RatedAnswer, Rating, rate
from charter.outcomes import mean_probability, outcome_of
from charter.spec.constitution import Principle
from charter.v1 import judge_pb2, types_pb2

logger = logging.getLogger("charter.judge")


@dataclass(frozen=True, slots=True)
class Task:
    """One pair to label, and the principles to ask about."""

    pair: Pair
    principles: tuple[Principle, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """How pairs are labelled."""

    method: Method
    calibration: CalibrationSet


# Of a model that gives its options less than this after an easy question, they are not what it writes.
_NEVER = 1e-3
# Asked once at the start, to warm the model and to see which methods it can do.
_PROBE = Question(
    Pair((ChatMessage("user", "How are you?"),), "Fine, thank you.", "Go away."),
    Principle(
        id="probe",
        dimension="probe",
        compare="Which response is kinder?",
        critique="Say what is unkind.",
        revise="Rewrite it kindly.",
        follow="You are kind.",
        oppose="You are unkind.",
    ),
)


async def unsupported_methods(engine: Engine) -> dict[str, str]:
    """The methods, mixes aside, that this model or engine cannot do, and why.

    An option that is two tokens, for example, or a model that writes none of the options after an easy question. Where
    it only did badly, or an endpoint's reply is to blame, a line in the log says so: other questions may go better.
    Raises ``ConnectionError`` when the model cannot be reached.
    """
    reasons = {}
    for name, part in mix.PARTS.items():
        try:
            (finding,) = await part.find(engine, [_PROBE])
        except (ValueError, NotImplementedError) as error:
            reasons[name] = str(error)
        else:
            if _fails_always(engine, finding, name):
                reasons[name] = finding.failure
    if choice.METHOD.name in reasons:
        # After the rationale it reads the same letters.
        reasons[choice.REASONED.name] = reasons[choice.METHOD.name]
    return reasons


async def why_unable_to_rate(engine: Engine) -> str:
    """Why this model cannot rate answers; empty when it can. As ``unsupported_methods``."""
    pair, principle = _PROBE.pair, _PROBE.principle
    try:
        (rating,) = await rate(engine, [RatedAnswer(pair.prompt, pair.answer_a, principle)])
    except (ValueError, NotImplementedError) as error:
        return str(error)
    return rating.failure if _fails_always(engine, rating, "rating") else ""


def _fails_always(engine: Engine, found: Finding | Rating, method: str) -> bool:
    if not found.failure:
        return False
    info = engine.info()
    if info.engine != "openai" and (found.kind != types_pb2.FAILURE_KIND_UNCLEAR or found.mass < _NEVER):
        return True
    logger.warning(
        "the judge's model failed at an easy question: expect labels that are INVALID",
        extra={"model": info.model, "method": method, "failure": found.failure},
    )
    return False


async def judge(engine: Engine, tasks: Sequence[Task], way: Way) -> list[judge_pb2.Judgement]:
    """Label each task with one call of the method for all of them.

    ``model`` and ``constitution_digest`` are left to the caller. Raises ``ValueError`` or ``NotImplementedError``
    when the engine cannot judge by this method at all.
    """
    asked: list[Question] = []
    findings: dict[tuple[int, int], Finding] = {}
    places: list[tuple[int, int]] = []
    for task_index, task in enumerate(tasks):
        for principle_index, principle in enumerate(task.principles):
            place = (task_index, principle_index)
            known = _without_model(task.pair)
            if known is not None:
                findings[place] = known
            else:
                asked.append(Question(_in_fixed_order(task.pair), principle))
                places.append(place)
    for place, question, finding in zip(places, asked, await _find(_finder(way), engine, asked), strict=True):
        swapped = question.pair != tasks[place[0]].pair
        findings[place] = _exchanged(finding, way.method.evidence) if swapped else finding
    return [
        judgement_of(task, [findings[index, place] for place in range(len(task.principles))], way)
        for index, task in enumerate(tasks)
    ]


def _finder(way: Way) -> Find:
    if way.method is mix.METHOD:
        return partial(mix.find, methods=way.calibration.mixed)
    return way.method.find


def _without_model(pair: Pair) -> Finding | None:
    """What can be said without asking: an empty answer cannot be judged, identical answers are equally good."""
    empty = [name for name, answer in (("A", pair.answer_a), ("B", pair.answer_b)) if not answer.strip()]
    if empty:
        failure = f"answer {' and '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty"
        return Finding(failure=failure, kind=types_pb2.FAILURE_KIND_EMPTY)
    return Finding() if pair.answer_a == pair.answer_b else None


def _in_fixed_order(pair: Pair) -> Pair:
    """The same for a pair and its exchange: the model then reads the same text, and rounding cannot differ."""
    return pair if pair.answer_a <= pair.answer_b else pair.swapped()


def _exchanged(finding: Finding, kind: Evidence) -> Finding:
    """What would have been found with A and B exchanged."""
    return replace(
        finding,
        evidence=kind.exchanged(finding.evidence),
        rationale=finding.rationale_swapped,
        rationale_swapped=finding.rationale,
    )


async def _find(find: Find, engine: Engine, questions: Sequence[Question]) -> list[Finding]:
    return await ask_each(partial(find, engine), questions, lambda error, kind: Finding(failure=str(error), kind=kind))


def judgement_of(task: Task, findings: Sequence[Finding], way: Way) -> judge_pb2.Judgement:
    """The label of what a method found by each principle: the mean over those that it could judge, or the failure."""
    by_principle = [
        _principle_judgement(principle, finding, way)
        for principle, finding in zip(task.principles, findings, strict=True)
    ]
    usage = total(*(finding.usage for finding in findings))
    judgement = judge_pb2.Judgement(
        principles=by_principle,
        method=way.method.number,
        chain_of_thought=way.method.reasons,
        usage=usage_proto(usage),
    )
    probabilities = [one.probability_a for one in by_principle if one.HasField("probability_a")]
    if probabilities:
        judgement.probability_a = mean_probability(probabilities)
        judgement.outcome = outcome_of(judgement.probability_a)
    else:
        kinds = [finding.kind for finding in findings]
        unavailable = types_pb2.FAILURE_KIND_UNAVAILABLE in kinds
        judgement.outcome = types_pb2.OUTCOME_UNAVAILABLE if unavailable else types_pb2.OUTCOME_INVALID
        judgement.failure_kind = types_pb2.FAILURE_KIND_UNAVAILABLE if unavailable else kinds[0]
    metrics.observe_judgement(judgement, way.method.name)
    return judgement


def _principle_judgement(principle: Principle, finding: Finding, way: Way) -> types_pb2.PrincipleJudgement:
    judged = types_pb2.PrincipleJudgement(
        principle_id=principle.id,
        dimension=principle.dimension,
        rationale=finding.rationale,
        rationale_swapped=finding.rationale_swapped,
        failure=finding.failure,
        failure_kind=finding.kind,
        evidence=finding.evidence,
        prompt_tokens=finding.usage.prompt_tokens,
        completion_tokens=finding.usage.completion_tokens,
        without_logprobs=finding.written,
    )
    if finding.failure:
        unavailable = finding.kind == types_pb2.FAILURE_KIND_UNAVAILABLE
        judged.outcome = types_pb2.OUTCOME_UNAVAILABLE if unavailable else types_pb2.OUTCOME_INVALID
        return judged
    probabilities = way.method.probabilities(way.calibration.of(principle.dimension), finding.evidence)
    judged.probability_a = mean_probability(probabilities)
    judged.outcome = outcome_of(judged.probability_a)
    if len(probabilities) == 2:
        judged.probability_a_shown_first, judged.probability_a_shown_second = probabilities
    return judged


def usage_proto(usage: Usage) -> judge_pb2.TokenUsage:
    """The wire form of a usage."""
    return judge_pb2.TokenUsage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)

"""Contrast: is the answer likelier from a writer who keeps to the principle than from one who breaks it?

The evidence is the difference of the two answers' mean log-likelihood per token, in nats, once under the system
prompt ``follow`` and once under ``oppose``. With ``oppose_without_prompt`` the latter does not see the conversation,
and the difference is the information that the answer shares with it. Contrasting prompts is the idea of RLCD (Yang et
al. 2023, arXiv 2307.12950), which samples under both; here both score what somebody else wrote. Needs an engine that
gives log-likelihoods.
"""

from collections.abc import Sequence

from charter.chat import ChatMessage
from charter.inference.engine import AnswerLogLikelihood, ContextTooLongError, Engine, Prompt
from charter.judge.calibration import Evidence, MethodCalibration
from charter.judge.methods.method import Method
from charter.judge.pairs import Finding, Question, Usage, too_long
from charter.v1 import judge_pb2, types_pb2


async def find(engine: Engine, questions: Sequence[Question]) -> list[Finding]:
    """Judge each question; an answer that occurs in several of them is scored once under each system prompt."""
    wanted = [items(question) for question in questions]
    unique = list(dict.fromkeys(item for four in wanted for item in four))
    found = dict(zip(unique, await engine.answer_loglikelihoods(unique), strict=True))
    return [_finding([found[item] for item in four]) for four in wanted]


def items(question: Question) -> list[tuple[Prompt, str]]:
    """What is scored: both answers under ``follow``, then both under ``oppose``."""
    pair, principle = question.pair, question.principle
    unread = (ChatMessage("user", ""),)
    followed = Prompt(under_system(principle.follow, pair.prompt))
    opposed = Prompt(under_system(principle.oppose, unread if principle.oppose_without_prompt else pair.prompt))
    return [(prompt, answer) for prompt in (followed, opposed) for answer in (pair.answer_a, pair.answer_b)]


def under_system(text: str, conversation: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The conversation under a system prompt; its own system prompt, if any, follows in the same turn."""
    if conversation[0].role == "system":
        joined = "\n\n".join(part for part in (text, conversation[0].content) if part)
        return (ChatMessage("system", joined), *conversation[1:])
    return (ChatMessage("system", text), *conversation) if text else conversation


def _finding(results: Sequence[AnswerLogLikelihood | ContextTooLongError]) -> Finding:
    likelihoods = [result for result in results if isinstance(result, AnswerLogLikelihood)]
    usage = Usage(prompt_tokens=sum(result.prompt_tokens + result.tokens for result in likelihoods))
    for result in results:
        if isinstance(result, ContextTooLongError):
            return Finding(failure=too_long(result), kind=types_pb2.FAILURE_KIND_TOO_LONG, usage=usage)
    if any(result.tokens == 0 for result in likelihoods):
        return Finding(failure="an answer has no tokens", kind=types_pb2.FAILURE_KIND_EMPTY, usage=usage)
    follow_a, follow_b, oppose_a, oppose_b = (result.total / result.tokens for result in likelihoods)
    return Finding(evidence=(follow_a - follow_b, oppose_a - oppose_b), usage=usage)


# Differences of mean log-likelihoods per token are small numbers: at temperature 1 every label would be 0.5. The values
# are rounded from those fitted for a model of 135 M parameters (docs/measurements/judge.md).
METHOD = Method(
    "contrast",
    judge_pb2.JUDGING_METHOD_CONTRAST,
    find,
    Evidence.LEADS,
    MethodCalibration(temperature=0.1, oppose_weight=0.9),
)

"""Choice: both answers are shown and the probabilities of the answer letters read, in both orders.

As Bai et al. 2022 (arXiv 2212.08073), section 4.1, with both orders as in Lee et al. 2023 (arXiv 2309.00267), section
2.1. The conversation comes first and the principle last, so that an engine with a prefix cache reads the answers once
for all principles. A principle's examples come before it as turns of their own, the better answer first and second in
turn; in the swapped order they are swapped too, so that they favour no position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from charter.chat import ChatMessage
from charter.inference.engine import Engine, GeneratedSample, Prompt, Sampling
from charter.judge.calibration import Evidence, MethodCalibration
from charter.judge.methods.method import Method
from charter.judge.options import Odds, log_odds
from charter.judge.pairs import Finding, Pair, Question, Usage, quoted, too_long, total, transcript
from charter.judge.text_generation import write_each
from charter.spec.constitution import Principle
from charter.v1 import judge_pb2, types_pb2

LETTERS = ("A", "B")
_PREFIX = "The better response is ("
_ENDING = "Answer with one letter, A or B."
RATIONALE = Sampling(max_new_tokens=256, temperature=0.0)


async def find(engine: Engine, questions: Sequence[Question]) -> list[Finding]:
    """Judge each question by its answer letters."""
    prompts = [prompt(question, swapped) for question in questions for swapped in (False, True)]
    odds = await log_odds(engine, prompts, LETTERS)
    return [_finding(odds[i], odds[i + 1]) for i in range(0, len(odds), 2)]


def prompt(question: Question, swapped: bool) -> Prompt:
    """What is asked in one order."""
    return Prompt((*_examples(question.principle, swapped), _shown(question, swapped, _ENDING)), _PREFIX)


async def find_by_reasoning(engine: Engine, questions: Sequence[Question]) -> list[Finding]:
    """As ``find``, after a rationale that the model writes greedily for each order (Lee et al. 2023, section 2.1.2).

    A question whose rationale does not fit the context is a failure. The others are asked for their letters. Examples
    are not shown: they have no rationale, and the model would follow them and write none.
    """
    asked = [reasoning_prompt(question, swapped) for question in questions for swapped in (False, True)]
    written = await write_each(engine, asked, RATIONALE)
    findings: dict[int, Finding] = {}
    prompts: list[Prompt] = []
    rationales: dict[int, tuple[GeneratedSample, GeneratedSample]] = {}
    for place in range(len(questions)):
        straight, swapped = written[2 * place : 2 * place + 2]
        if not isinstance(straight, GeneratedSample):
            findings[place] = Finding(failure=too_long(straight), kind=types_pb2.FAILURE_KIND_TOO_LONG)
        elif not isinstance(swapped, GeneratedSample):
            findings[place] = Finding(failure=too_long(swapped), kind=types_pb2.FAILURE_KIND_TOO_LONG)
        else:
            rationales[place] = (straight, swapped)
            prompts += [decision(asked[2 * place], straight), decision(asked[2 * place + 1], swapped)]
    odds = iter(await log_odds(engine, prompts, LETTERS))
    for place, (straight, swapped) in rationales.items():
        found = _finding(next(odds), next(odds))
        findings[place] = replace(
            found,
            rationale=straight.text,
            rationale_swapped=swapped.text,
            usage=total(found.usage, _spent(straight), _spent(swapped)),
        )
    return [findings[place] for place in range(len(questions))]


def reasoning_prompt(question: Question, swapped: bool) -> Prompt:
    """What is asked in one order before the judge decides."""
    return Prompt((_shown(question, swapped, "Let us think step by step."),))


def decision(asked: Prompt, rationale: GeneratedSample) -> Prompt:
    """What is asked after the rationale."""
    ending = ChatMessage("user", "So which response is better? Answer with one letter, A or B.")
    return Prompt((*asked.messages, ChatMessage("assistant", rationale.text), ending), _PREFIX)


def _examples(principle: Principle, swapped: bool) -> Iterator[ChatMessage]:
    """The examples as questions with their answers."""
    for index, example in enumerate(principle.examples):
        better_second = (index % 2 == 1) != swapped
        pair = Pair((ChatMessage("user", example.prompt),), example.better, example.worse)
        yield _shown(Question(pair, principle), better_second, _ENDING)
        yield ChatMessage("assistant", f"{_PREFIX}{LETTERS[better_second]})")


def _shown(question: Question, swapped: bool, ending: str) -> ChatMessage:
    pair = question.pair.swapped() if swapped else question.pair
    return ChatMessage(
        "user",
        "Here is a conversation between a user and an assistant, and two candidate responses.\n\n"
        f"{transcript(pair.prompt)}\n\n(A) {quoted(pair.answer_a)}\n\n(B) {quoted(pair.answer_b)}\n\n"
        f"{question.principle.compare} {ending}",
    )


def _finding(straight: Odds, swapped: Odds) -> Finding:
    usage = total(straight.usage, swapped.usage)
    for one in (straight, swapped):
        if one.failure:
            return Finding(failure=one.failure, kind=one.kind, usage=usage, mass=one.mass)
    written = straight.written or swapped.written
    # In the swapped order A stands second, so its log-odds are those of the letter B.
    return Finding(evidence=(straight.logit, -swapped.logit), usage=usage, written=written)


def _spent(sample: GeneratedSample) -> Usage:
    return Usage(*sample.usage)


METHOD = Method("choice", judge_pb2.JUDGING_METHOD_CHOICE, find, Evidence.ORDERS, MethodCalibration())
# After a rationale the letter is nearly certain whatever it is: as a label it is held between 40 and 60 % (Bai et al.
# 2022, section 4.1).
REASONED = replace(METHOD, name="choice+reasoning", find=find_by_reasoning, reasons=True, least=0.4)

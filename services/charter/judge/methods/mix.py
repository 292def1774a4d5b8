"""Mix: several methods are asked, and their evidence is weighed.

The log-odds of A are the sum of the weights times the evidence (logistic regression without an intercept, fitted on
labelled pairs): methods that fail on different pairs make up for each other. A method whose weights are all zero is not
asked; its evidence is then zero.
"""

from collections.abc import Mapping, Sequence

from charter.inference.engine import Engine
from charter.judge.calibration import Evidence, MixCalibration
from charter.judge.methods import choice, contrast, verdict
from charter.judge.methods.method import Method
from charter.judge.pairs import Finding, Question, total
from charter.v1 import judge_pb2

# In the order of their evidence.
PARTS: Mapping[str, Method] = {one.name: one for one in (choice.METHOD, verdict.METHOD, contrast.METHOD)}


async def find(engine: Engine, questions: Sequence[Question], methods: Sequence[str] = tuple(PARTS)) -> list[Finding]:
    """Judge each question by each of the methods; one that fails makes the question fail."""
    asked = {name: await part.find(engine, questions) for name, part in PARTS.items() if name in methods}
    return [combined({name: findings[place] for name, findings in asked.items()}) for place in range(len(questions))]


def combined(by_method: Mapping[str, Finding]) -> Finding:
    """The evidence of what each method found for a question, or the failure of one of them."""
    usage = total(*(one.usage for one in by_method.values()))
    for name, one in by_method.items():
        if one.failure:
            return Finding(failure=f"{name}: {one.failure}", kind=one.kind, usage=usage)
    evidence = tuple(
        number for name in PARTS for number in (by_method[name].evidence if name in by_method else (0.0, 0.0))
    )
    return Finding(evidence=evidence, usage=usage, written=any(one.written for one in by_method.values()))


# The mean of the log-odds by the defaults of its parts.
METHOD = Method(
    "mix", judge_pb2.JUDGING_METHOD_MIX, find, Evidence.MIX, MixCalibration(1 / 3, 1 / 3, -1 / 3, 10 / 3, -3.0)
)

"""Mix: several methods are asked, and their evidence is weighed.

The log-odds of A are the sum of the weights times the evidence (logistic regression without an intercept, fitted on
labelled pairs): methods that fail on different pairs make up for each other. A method whose weights are all zero is not
asked; its evidence is then zero.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from charter.inference.engine import Engine
from charter.judge.methods import choice, contrast, verdict
from charter.judge.pairs import Finding, Question, total

Find = Callable[[Engine, Sequence[Question]], Awaitable[list[Finding]]]

# In the order of their evidence.
PARTS: Mapping[str, Find] = {"choice": choice.find, "verdict": verdict.find, "contrast": contrast.find}


async def find(engine: Engine, questions: Sequence[Question], methods: Sequence[str]) -> list[Finding]:
    """Judge each question by each of the methods; one that fails makes the question fail."""
    asked = {name: await part(engine, questions) for name, part in PARTS.items() if name in methods}
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

"""What figures are made of: answers of models to prompts, and judgements of two of them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to a prompt."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge (a model, or a person) said of two models' answers of one seed.

    ``probability_a`` is P(the answer of ``model_a`` is better), None where judging failed; ``a_first`` says which of
    the answers the judge saw first, None where both orders are in the one number.
    """

    prompt: str
    dimension: str
    judge: str
    model_a: str
    model_b: str
    seed: int
    probability_a: float | None
    a_first: bool | None = None

    def turned(self) -> "Judgement":
        """The same with the models exchanged."""
        return replace(
            self,
            model_a=self.model_b,
            model_b=self.model_a,
            probability_a=None if self.probability_a is None else 1.0 - self.probability_a,
            a_first=None if self.a_first is None else not self.a_first,
        )


def between(judgements: Iterable[Judgement], model: str, against: str) -> list[Judgement]:
    """Those of these two models, turned so that ``model`` is A."""
    found = []
    for one in judgements:
        if (one.model_a, one.model_b) == (model, against):
            found.append(one)
        elif (one.model_a, one.model_b) == (against, model):
            found.append(one.turned())
    return found


def judged(judgements: Iterable[Judgement]) -> list[tuple[Judgement, float]]:
    """Those that did not fail, each with its probability. Raises ``ValueError`` for what is no probability."""
    found = [(one, one.probability_a) for one in judgements if one.probability_a is not None]
    for _, probability in found:
        # Written so that NaN fails too.
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"a probability must lie between 0 and 1, got {probability}")
    return found

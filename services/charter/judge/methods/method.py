"""What a judging method is. Each file beside this one defines one or two; ``charter.judge.methods`` lists them all."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from charter.inference.engine import Engine
from charter.judge.calibration import Calibration, Evidence
from charter.judge.pairs import Finding, Question
from charter.outcomes import held_between
from charter.v1 import judge_pb2

Find = Callable[[Engine, Sequence[Question]], Awaitable[list[Finding]]]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to compare two answers by a principle.

    ``number`` and ``reasons`` say it in the contract (``method`` and ``chain_of_thought``). ``find`` asks the model and
    gives a finding for each question, in order; its numbers are of the kind ``evidence``. ``default`` reads them where
    no calibration was fitted.
    """

    name: str
    number: judge_pb2.JudgingMethod.ValueType
    find: Find
    evidence: Evidence
    default: Calibration
    reasons: bool = False
    # The least probability of either answer that is served.
    least: float = 0.0

    def probabilities(self, calibration: Calibration, evidence: tuple[float, ...]) -> tuple[float, ...]:
        """P(A is better) as it is served: with A shown first and second for orders, else one number.

        Identical answers have no evidence and are a tie.
        """
        if not evidence:
            return (0.5,)
        found = calibration.probabilities(self.evidence, evidence)
        return tuple(held_between(probability, self.least) for probability in found)

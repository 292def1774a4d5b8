"""How far two judges of an evaluation agree."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from charter.evaluation.figures.agreement import kappa_estimate
from charter.evaluation.figures.rows import Judgement
from charter.evaluation.statistics import Estimate, NotIdentifiedError, estimate
from charter.outcomes import side


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the pairs that both judged; a tie is a label of its own."""

    judge: str
    other: str
    dimension: str
    pairs: int
    # Share of pairs of which both say the same.
    same: Estimate | None
    # Beyond chance; None where ``note`` says why.
    kappa: Estimate | None
    note: str = ""

    def prompts_needed(self) -> dict[str, int | None]:
        """About how many prompts would tell, where it is open whether they agree beyond chance."""
        return {"kappa": None if self.kappa is None else self.kappa.prompts_needed(0.0)}


def agreements(
    rows: Mapping[str, Mapping[str, Sequence[Judgement]]], *, samples: int, seed: int
) -> Iterable[Agreement]:
    """Of every two judges, in each dimension that both judged.

    Args:
        rows: by judge and dimension, what each judge said of pairs of different answers: of equal ones nobody is asked.
        samples: bootstrap draws.
        seed: of the draws.
    """
    for judge, other in combinations(rows, 2):
        for dimension in rows[judge]:
            if dimension in rows[other]:
                yield _agreement(judge, other, dimension, rows[judge][dimension], rows[other][dimension], samples, seed)


def _agreement(
    judge: str,
    other: str,
    dimension: str,
    first: Sequence[Judgement],
    second: Sequence[Judgement],
    samples: int,
    seed: int,
) -> Agreement:
    said = {_item(one): float(side(one.probability_a)) for one in second if one.probability_a is not None}
    both = [one for one in first if one.probability_a is not None and _item(one) in said]
    if not both:
        return Agreement(judge, other, dimension, 0, None, None, "they judged no pair in common")
    labels = [(float(side(one.probability_a)), said[_item(one)]) for one in both]
    prompts = [one.prompt for one in both]
    same = estimate([float(a == b) for a, b in labels], prompts, samples=samples, seed=seed, bounds=(0.0, 1.0))
    try:
        kappa = kappa_estimate(labels, prompts, samples=samples, seed=seed)
    except NotIdentifiedError as error:
        return Agreement(judge, other, dimension, len(both), same, None, str(error))
    return Agreement(judge, other, dimension, len(both), same, kappa)


def _item(one: Judgement) -> tuple[str, str, str, int]:
    return one.model_a, one.model_b, one.prompt, one.seed

"""Labelled pairs with what a judge made of them, and how a calibration reads what it found."""

from collections.abc import Sequence
from dataclasses import dataclass

from charter.data.pairs.labelled import LabelledPair
from charter.evaluation.judge.labelled_pairs import split_by_group
from charter.held_out import prompt_key
from charter.judge.calibration import CalibrationSet
from charter.judge.methods import method_of
from charter.judge.methods.method import Method
from charter.outcomes import mean_probability
from charter.v1 import judge_pb2

# Fewer prompts say too little to fit on: of all pairs, and of a dimension by itself.
LEAST_PROMPTS = 15


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A labelled pair and what the judge made of it."""

    pair: LabelledPair
    judgement: judge_pb2.Judgement

    @property
    def usable(self) -> bool:
        """Whether the judge gave a probability."""
        return self.judgement.HasField("probability_a")


def method_by(judgement: judge_pb2.Judgement) -> Method:
    """The method that a judgement was made by. Raises ``KeyError`` for that of a judge that is not ours."""
    return method_of(judgement.method, judgement.chain_of_thought)


def as_served(judgement: judge_pb2.Judgement) -> float:
    """P(A is better) as the judge gave it."""
    return judgement.probability_a


def probability(judgement: judge_pb2.Judgement, calibration: CalibrationSet) -> float:
    """P(A is better) of a usable judgement as the judge would have served it by this calibration."""
    method = method_by(judgement)
    return mean_probability(
        mean_probability(method.probabilities(calibration.of(one.dimension), tuple(one.evidence)))
        for one in judgement.principles
        if one.HasField("probability_a")
    )


def halves(judged: Sequence[JudgedPair]) -> tuple[list[JudgedPair], list[JudgedPair]]:
    """The pairs to fit on and those to report on, with no prompt in both.

    Raises ``ValueError`` when there is nothing to report on, or what could be fitted on is of fewer than
    ``LEAST_PROMPTS`` prompts.
    """
    fit, _ = split_by_group([one.pair for one in judged])
    groups = {pair.group for pair in fit}
    # Groups are the file's own, and may part a prompt.
    prompts = {prompt_key(pair.prompt) for pair in fit}
    fitted_on = [one for one in judged if one.pair.group in groups]
    reported_on = [one for one in judged if one.pair.group not in groups and prompt_key(one.pair.prompt) not in prompts]
    count, together = (len({one.pair.group for one in part if one.usable}) for part in (fitted_on, judged))
    if count < LEAST_PROMPTS or not any(one.usable for one in reported_on):
        raise ValueError(
            f"judged pairs come from {together} prompts, too few to fit on some and report on others: a calibration "
            f"needs {LEAST_PROMPTS} to fit on, and of these {count} would be. Label pairs of more prompts, "
            f"{2 * LEAST_PROMPTS + 10} or so in all"
        )
    return fitted_on, reported_on


def fitted_prompts(judged: Sequence[JudgedPair]) -> tuple[str, ...]:
    """Keys of the prompts of the usable pairs, sorted."""
    return tuple(sorted({prompt_key(one.pair.prompt) for one in judged if one.usable}))

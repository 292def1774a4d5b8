"""What a run's judge check says of the judge."""

from collections.abc import Collection, Sequence
from statistics import mean

from charter.data.pairs.labelled import LabelledPair
from charter.evaluation.judge.calibration import calibration_of, position_bias_rate, shorter_is_better_accuracy
from charter.held_out import prompt_key
from charter.runs.results import JudgeCheck
from charter.storage.comparisons import enum_name, method_name
from charter.v1 import judge_pb2


def without_fitted(pairs: Sequence[LabelledPair], fitted_prompts: Collection[str]) -> list[LabelledPair]:
    """The pairs on whose prompts the judge's calibration was not fitted: on the others it is measured too well.

    Raises ``ValueError`` when there are only others.
    """
    fitted = set(fitted_prompts)
    kept = [pair for pair in pairs if prompt_key(pair.prompt) not in fitted]
    if not kept:
        raise ValueError(f"the judge's calibration was fitted on the prompts of all {len(pairs)} labelled pairs")
    return kept


def judge_check_of(
    pairs: list[LabelledPair], judgements: list[judge_pb2.Judgement], *, source: str, seed: int, left_out: int
) -> JudgeCheck:
    """Accuracy, calibration and biases of judgements of labelled pairs; ``left_out`` are those that were not judged.

    Raises ``ValueError`` when all judgements failed.
    """
    failures: dict[str, int] = {}
    judged = []
    for pair, judgement in zip(pairs, judgements, strict=True):
        if judgement.HasField("probability_a"):
            judged.append((pair, judgement))
        else:
            name = enum_name("outcome", judgement.outcome)
            failures[name] = failures.get(name, 0) + 1
    if not judged:
        raise ValueError(f"the judge could not label any of {len(pairs)} labelled pairs: {failures}")
    labels = [pair.label for pair, _ in judged]
    both_orders = [orders for _, judgement in judged if (orders := _both_orders(judgement)) is not None]
    return JudgeCheck(
        model=judged[0][1].model,
        method=method_name(judged[0][1]),
        source=source,
        calibration=calibration_of(
            [judgement.probability_a for _, judgement in judged], labels, [pair.group for pair, _ in judged], seed=seed
        ),
        position_bias_rate=(
            position_bias_rate([first for first, _ in both_orders], [second for _, second in both_orders])
            if both_orders
            else None
        ),
        shorter_is_better_accuracy=shorter_is_better_accuracy(
            [len(pair.answer_a) for pair, _ in judged], [len(pair.answer_b) for pair, _ in judged], labels
        ),
        failures=failures,
        left_out=left_out,
    )


def _both_orders(judgement: judge_pb2.Judgement) -> tuple[float, float] | None:
    """P(A) when A was shown first and when it was shown second, means over principles; None without positions."""
    shown = [one for one in judgement.principles if one.HasField("probability_a_shown_first")]
    if not shown:
        return None
    return mean(one.probability_a_shown_first for one in shown), mean(one.probability_a_shown_second for one in shown)

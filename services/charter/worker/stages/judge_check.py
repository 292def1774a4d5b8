"""Measures the judge on labelled pairs, so that everything after it can be read in that light."""

from pathlib import Path
from statistics import mean

from charter.evaluation.judge.calibration import calibration_of, position_bias_rate, shorter_is_better_accuracy
from charter.evaluation.judge.labelled_pairs import LabelledPair, read_labelled_pairs
from charter.rpc.messages import proto_messages
from charter.runs.results import JudgeCheck, write_result
from charter.storage.comparisons import enum_name
from charter.v1 import judge_pb2, run_pb2
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.seeds import derive_seed, stable_fraction

# Pairs in one call, so that progress shows.
_BATCH = 16


def check_judge(run: Run) -> None:
    """Write ``judge_check.json`` if the spec names labelled pairs. Raises ``RunError`` when every judgement failed."""
    spec = run.spec.judge
    if not spec.labelled_pairs or (run.artifacts.folder / "judge_check.json").exists():
        return
    with run.reporter.in_phase(run_pb2.PHASE_CHECKING_JUDGE):
        pairs = _chosen(read_labelled_pairs(Path(spec.labelled_pairs)), spec.labelled_pairs_limit)
        judgements: list[judge_pb2.Judgement] = []
        for start in range(0, len(pairs), _BATCH):
            run.reporter.raise_if_stopped()
            judgements += _judge(run, pairs[start : start + _BATCH], start)
            run.reporter.report(len(judgements), len(pairs))
        result = judge_check_of(pairs, judgements, source=Path(spec.labelled_pairs).name, seed=run.spec.seed)
        write_result(run.artifacts.folder, "judge_check", result)
        run.reporter.report(
            len(pairs),
            len(pairs),
            numbers={"judge_accuracy": result.calibration.accuracy, "judge_failures": sum(result.failures.values())},
            text=f"judge agrees with {result.calibration.accuracy:.0%} of {result.calibration.pairs} labelled pairs",
        )


def judge_check_of(
    pairs: list[LabelledPair], judgements: list[judge_pb2.Judgement], *, source: str, seed: int
) -> JudgeCheck:
    """Accuracy, calibration and biases of judgements of labelled pairs. Raises ``RunError`` when all of them failed."""
    failures: dict[str, int] = {}
    judged = []
    for pair, judgement in zip(pairs, judgements, strict=True):
        if judgement.HasField("probability_a"):
            judged.append((pair, judgement))
        else:
            name = enum_name("outcome", judgement.outcome)
            failures[name] = failures.get(name, 0) + 1
    if not judged:
        raise RunError(f"the judge could not label any of {len(pairs)} labelled pairs: {failures}. See the judge's log")
    labels = [pair.label for pair, _ in judged]
    both_orders = [orders for _, judgement in judged if (orders := _both_orders(judgement)) is not None]
    return JudgeCheck(
        model=judged[0][1].model,
        method=judge_pb2.JudgingMethod.Name(judged[0][1].method).removeprefix("JUDGING_METHOD_").lower(),
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
    )


def _chosen(pairs: list[LabelledPair], limit: int) -> list[LabelledPair]:
    """At most ``limit`` pairs, by a hash of their content: the same ones in every run, whatever the file's order."""
    return sorted(pairs, key=lambda pair: stable_fraction(pair.group, pair.answer_a, pair.answer_b))[:limit]


def _judge(run: Run, pairs: list[LabelledPair], start: int) -> list[judge_pb2.Judgement]:
    items = [
        judge_pb2.ComparisonItem(
            id=f"check-{start + place}",
            prompt=proto_messages(pair.prompt),
            answer_a=pair.answer_a,
            answer_b=pair.answer_b,
            dimension=run.judged_dimension(pair.dimension),
        )
        for place, pair in enumerate(pairs)
    ]
    judged = run.services.judge.compare(items, run.judging_options(derive_seed(run.spec.seed, "judge check")))
    return [judged[item.id] for item in items]


def _both_orders(judgement: judge_pb2.Judgement) -> tuple[float, float] | None:
    """P(A) when A was shown first and when it was shown second, means over principles; None without positions."""
    shown = [one for one in judgement.principles if one.HasField("probability_a_shown_first")]
    if not shown:
        return None
    return mean(one.probability_a_shown_first for one in shown), mean(one.probability_a_shown_second for one in shown)

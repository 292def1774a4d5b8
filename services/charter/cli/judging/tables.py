"""What `charter judge` prints: judgements and measurements as JSON and as tables."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from charter.cli.output import console, print_table, printable
from charter.evaluation.judge.judged import JudgedPair
from charter.storage.comparisons import enum_name, method_name
from charter.v1 import judge_pb2, types_pb2


def outcome_name(outcome: types_pb2.Outcome.ValueType) -> str:
    """The outcome in lower case."""
    return enum_name("outcome", outcome).lower()


def judgement_json(judgement: judge_pb2.Judgement) -> dict[str, Any]:
    """A judgement as JSON; a probability that does not exist is null."""
    return {
        "outcome": outcome_name(judgement.outcome),
        "probability_a": _number(judgement, "probability_a"),
        "method": method_name(judgement),
        "model": judgement.model,
        "constitution_digest": judgement.constitution_digest,
        "principles": [_principle_json(one) for one in judgement.principles],
        "prompt_tokens": judgement.usage.prompt_tokens,
        "completion_tokens": judgement.usage.completion_tokens,
    }


def _principle_json(one: types_pb2.PrincipleJudgement) -> dict[str, Any]:
    numbers = ("probability_a", "probability_a_shown_first", "probability_a_shown_second")
    return {
        "principle_id": one.principle_id,
        "dimension": one.dimension,
        "outcome": outcome_name(one.outcome),
        **{name: _number(one, name) for name in numbers},
        "evidence": list(one.evidence),
        "rationale": one.rationale,
        "rationale_swapped": one.rationale_swapped,
        "failure": one.failure,
        "without_logprobs": one.without_logprobs,
    }


def _number(message: Any, name: str) -> float | None:
    return float(getattr(message, name)) if message.HasField(name) else None


def print_judgement(judgement: judge_pb2.Judgement) -> None:
    """One judgement, a row for each principle."""
    if judgement.HasField("probability_a"):
        console.print(
            f"[bold]{outcome_name(judgement.outcome)}[/], P(A is better) = {judgement.probability_a:.3f}   "
            f"by {method_name(judgement)}, {judgement.model}"
        )
    else:
        console.print(f"[bold red]{outcome_name(judgement.outcome)}[/]: there is no label")
    table = Table("principle", "dimension", "outcome", "P(A)", "A first", "A second", "why not")
    for one in judgement.principles:
        shown = (_number(one, f"probability_a{suffix}") for suffix in ("", "_shown_first", "_shown_second"))
        cells = ("" if value is None else f"{value:.3f}" for value in shown)
        table.add_row(
            one.principle_id, one.dimension, outcome_name(one.outcome), *cells, escape(printable(one.failure))
        )
    print_table(table)
    for name, rationale in (
        ("A, B", judgement.principles[0].rationale),
        ("B, A", judgement.principles[0].rationale_swapped),
    ):
        if rationale:
            console.print(f"[dim]reasoning in the order {name}:[/] {escape(printable(rationale))}")


def print_judgements(judged: Sequence[JudgedPair]) -> None:
    """Many judgements, a row for each."""
    table = Table("pair", "outcome", "P(A)", "principles", "why not")
    for index, one in enumerate(judged):
        value = _number(one.judgement, "probability_a")
        table.add_row(
            str(index + 1),
            outcome_name(one.judgement.outcome),
            "" if value is None else f"{value:.3f}",
            ", ".join(principle.principle_id for principle in one.judgement.principles),
            escape(printable("; ".join(sorted({p.failure for p in one.judgement.principles if p.failure})))),
        )
    print_table(table)


def print_measurement(found: dict[str, Any]) -> None:
    """What `calibrate` found."""
    served = found["calibrated"]
    console.print(
        f"[bold]{found['method']}[/] with {escape(found['model'])}: figures of {served['pairs']} pairs from "
        f"{served['prompts']} prompts, calibration fitted on {found['fitted_on']['pairs']} pairs of other prompts"
    )
    table = Table(
        "pairs",
        "n",
        "accuracy (95 %)",
        "Brier",
        "ECE",
        "shorter is better",
        "similar length",
        "shorter there",
    )
    for name, row in (
        ("all, as served", found["as_served"]),
        ("all, calibrated", served),
        *((f"{name} alone", row) for name, row in found["by_method"].items()),
        *((f"dimension {name}", row) for name, row in found["by_dimension"].items()),
        *((f"source: {name}", row) for name, row in found["by_source"].items()),
        *((f"by {name}", row) for name, row in found["by_principle"].items()),
    ):
        if row["pairs"]:
            table.add_row(escape(name), *_cells(row))
    print_table(table)
    console.print(
        f"an ECE of {served['calibration_error_by_chance']:.3f} is what perfect calibration shows on so few pairs"
    )
    console.print(_fitted("fitted", found["calibration"], found["calibration_intervals"]), markup=False)
    for name, values in found["calibration_by_dimension"].items():
        intervals = found["calibration_intervals_by_dimension"][name]
        console.print(_fitted(f"fitted for {name}", values, intervals), markup=False)
    if found["position_bias_rate"] is not None:
        console.print(f"the same position wins in both orders: {found['position_bias_rate']:.1%} of judgements")
    if found["mirrored_accuracy"] is not None:
        console.print(
            f"the opposite question alone prefers the better answer: {found['mirrored_accuracy']:.1%} of pairs"
        )
    console.print(f"an answer twice as long gains {found['calibrated']['length_slope']:+.3f} in probability")
    for names, value in found["principle_correlations"].items():
        console.print(f"correlation of {names}: {value:+.2f}")
    console.print(f"tokens per label: {found['prompt_tokens_per_label']:.0f} read")
    if found["failures"]:
        console.print(f"[red]without a label[/]: {found['failures']}")


def _fitted(what: str, values: dict[str, float], intervals: dict[str, tuple[float, float]]) -> str:
    """Each fitted number with its 95 % interval, bootstrapped by prompt."""
    numbers = [f"{name} {values[name]:.4g} ({low:.4g} to {high:.4g})" for name, (low, high) in intervals.items()]
    return f"{what}: {', '.join(numbers)}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    similar = row["similar_length_accuracy"]
    return (
        str(row["pairs"]),
        f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f} to {row['accuracy_high']:.3f})",
        f"{row['brier']:.3f}",
        f"{row['expected_calibration_error']:.3f}",
        f"{row['shorter_is_better_accuracy']:.3f}",
        f"{similar:.3f} of {row['similar_length_pairs']}" if similar is not None else "",
        f"{row['similar_length_shorter_accuracy']:.3f}" if similar is not None else "",
    )

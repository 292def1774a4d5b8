"""What `charter audit` prints. Texts come from models and may hold anything: they are made harmless first."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from charter.cli.output import console, print_table, printable, shortened
from charter.rpc.messages import chat_messages
from charter.storage.comparisons import enum_name
from charter.v1 import types_pb2

# Characters of a text and of an id in a list.
PREVIEW = 60
SHORT_ID = 12


def print_comparisons(comparisons: Sequence[types_pb2.Comparison], *, more: bool) -> None:
    """A row for each label."""
    if not comparisons:
        console.print("no label of this run was made by that principle, or for that dimension")
        return
    table = Table("comparison", "outcome", "P(A)", "principles", "prompt", box=None, pad_edge=False)
    for one in comparisons:
        table.add_row(
            one.id[:SHORT_ID],
            _outcome(one.outcome),
            _probability(one, "probability_a"),
            escape(printable(", ".join(judgement.principle_id for judgement in one.judgements))),
            escape(shortened(one.prompt[-1].content, PREVIEW)),
        )
    print_table(table)
    if more:
        console.print("There are more: --limit N lists more of them, --summary counts all.")
    console.print("`charter audit RUN --comparison ID` shows everything about one.")


def print_comparison(one: types_pb2.Comparison) -> None:
    """Everything that the store has about one label."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    made = f"{enum_name('source', one.source).lower()} label of {one.labeller or 'an unnamed labeller'}"
    time = one.create_time.ToDatetime(UTC)
    for name, value in (
        ("comparison", one.id),
        ("run", f"{one.run_id}, {enum_name('split', one.split).lower()} split"),
        ("time", f"{time:%Y-%m-%d %H:%M:%S} UTC"),
        ("label", f"{_outcome(one.outcome)}  {_probability(one, 'probability_a', 'P(A is better) = ')}"),
        ("made by", f"{made}{f', method {one.method}' if one.method else ''}"),
        ("constitution", f"sha256 {one.constitution_digest}" if one.constitution_digest else "none"),
        ("dimension", one.dimension or "none"),
    ):
        facts.add_row(f"[bold]{name}[/]", escape(printable(value)))
    print_table(facts)
    for turn in chat_messages(one.prompt):
        print_text(f"prompt, {turn.role}", turn.content)
    print_text(f"A{_writer(one.answer_a)}", one.answer_a.text)
    print_text(f"B{_writer(one.answer_b)}", one.answer_b.text)
    if one.rationale:
        print_text("rationale", one.rationale)
    if one.judgements:
        console.print()
        _print_judgements(one.judgements)


def _print_judgements(judgements: Sequence[types_pb2.PrincipleJudgement]) -> None:
    table = Table("principle", "dimension", "outcome", "P(A)", "A first", "A second", "evidence, nats", "tokens")
    for one in judgements:
        table.add_row(
            escape(printable(one.principle_id)),
            escape(printable(one.dimension)),
            _outcome(one.outcome),
            _probability(one, "probability_a"),
            _probability(one, "probability_a_shown_first"),
            _probability(one, "probability_a_shown_second"),
            "  ".join(f"{number:+.3f}" for number in one.evidence),
            str(one.prompt_tokens + one.completion_tokens),
        )
    print_table(table)
    for one in judgements:
        if one.without_logprobs:
            console.print(
                f"{escape(printable(one.principle_id))}: the model gave no log-probs; it was read by what it wrote"
            )
        for title, text in (
            ("why there is no label", one.failure),
            ("reasoning with A first", one.rationale),
            ("reasoning with B first", one.rationale_swapped),
        ):
            if text:
                print_text(f"{one.principle_id}: {title}", text)


def print_summary(run_id: str, found: dict[str, Any]) -> None:
    """Labels by principle, and where principles disagree."""
    outcomes = ", ".join(f"{count} {name}" for name, count in found["outcomes"].items())
    console.print(f"[bold]{escape(run_id)}[/]: {found['comparisons']} comparisons: {outcomes}")
    for one in found["labellers"]:
        digest = f", constitution {one['constitution_digest'][:SHORT_ID]}" if one["constitution_digest"] else ""
        method = f" by {one['method']}" if one["method"] else ""
        by = f"{one['labeller'] or 'unnamed'}{method}{digest}"
        console.print(escape(printable(f"{one['labels']} labels from {one['source']}: {by}")))
    table = Table("principle", "dimension", "judgements", "A", "B", "tie", "failed", "sure", "same position", "tokens")
    for name, row in found["principles"].items():
        counts = row["outcomes"]
        sure, same = row["mean_distance_from_half"], row["position_bias_rate"]
        table.add_row(
            escape(printable(name)),
            escape(printable(row["dimension"])),
            str(row["judgements"]),
            *(str(counts.get(outcome, 0)) for outcome in ("preferred_a", "preferred_b", "tie")),
            str(counts.get("invalid", 0) + counts.get("unavailable", 0)),
            "" if sure is None else f"{sure:.3f}",
            "" if same is None else f"{same:.0%}",
            f"{row['tokens_per_judgement']:.0f}",
        )
    print_table(table)
    console.print(
        "[dim]sure: mean distance of P(A is better) from 0.5. same position: how often the same position won in both "
        "orders. tokens: for each judgement.[/]"
    )
    _print_failures(found)
    _print_disagreement(found)


def _print_failures(found: dict[str, Any]) -> None:
    for name, row in found["principles"].items():
        for failure, count in row["failures"].items():
            console.print(escape(printable(f"{name}: {count} without a label: {failure}")))


def _print_disagreement(found: dict[str, Any]) -> None:
    if not found["disagreement"]:
        console.print(
            "No pair was judged by two principles: where they disagree shows with judge.ensemble_size of 2 or more."
        )
        return
    table = Table("principles", "asked together", "opposite answers", title="Where principles disagree")
    for entry in found["disagreement"]:
        share = entry["opposed"] / entry["asked_together"]
        names = escape(printable(" and ".join(entry["principles"])))
        table.add_row(names, str(entry["asked_together"]), f"{entry['opposed']} ({share:.0%})")
    print_table(table)
    for entry in found["widest"]:
        sides = ", ".join(
            f"{side['principle']} {side['probability_a']:.2f}" for side in (entry["for_a"], entry["for_b"])
        )
        console.print(f"{entry['comparison'][:SHORT_ID]}: P(A) by {escape(printable(sides))}")


def print_text(title: str, text: str) -> None:
    """A text of a model under its title, harmless."""
    console.print(f"\n[bold]{escape(printable(title))}[/]")
    console.print(Padding(Text(printable(text) or "(empty)"), (0, 0, 0, 2)))


def _writer(answer: types_pb2.Answer) -> str:
    version = f", weight version {answer.weight_version}" if answer.HasField("weight_version") else ""
    facts = [f"{answer.model}{version}" if answer.model else "", "cut off by the token limit" if answer.cut_off else ""]
    said = ", ".join(fact for fact in facts if fact)
    return f" ({said})" if said else ""


def _outcome(outcome: types_pb2.Outcome.ValueType) -> str:
    return enum_name("outcome", outcome).lower()


def _probability(message: types_pb2.Comparison | types_pb2.PrincipleJudgement, name: str, before: str = "") -> str:
    return f"{before}{getattr(message, name):.3f}" if message.HasField(name) else ""  # type: ignore[arg-type]

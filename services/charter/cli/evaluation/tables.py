"""The figures of an evaluation on a terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from charter.cli.output import print_table

if TYPE_CHECKING:
    from charter.evaluation.compare.results import Results, Standing
    from charter.evaluation.statistics import Estimate


def print_results(results: "Results", say: Console) -> None:
    """A table for each judge, with what must be said of it, and what was left out."""
    for judge, about in results.judges.items():
        named = f"{about.get('model', '')} by {about.get('method', '')}, {about.get('constitution_name', '')}"
        say.print(f"\n[bold]{escape(judge)}[/] [dim]{escape(named)}[/]", soft_wrap=True)
        for remark in results.remarks[judge]:
            say.print(f"[yellow]{escape(remark)}[/]", soft_wrap=True)
        standings = [one for one in results.standings if one.judge == judge]
        print_table(_table(results, standings), say)
        for note in dict.fromkeys(note for one in standings for note in one.notes):
            say.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
        if words := results.judgements_left_out[judge].in_words():
            say.print(f"judgements: {escape(words)}", soft_wrap=True)
    for model, left_out in results.answers_left_out.items():
        if words := left_out.in_words():
            say.print(f"answers of {escape(model)}: {escape(words)}", soft_wrap=True)


def _table(results: "Results", standings: Iterable["Standing"]) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = (
        "dimension",
        "model",
        f"wins against {results.start}",
        "equally long",
        "rating",
        "best",
        "tokens",
        "open",
    )
    for name in columns:
        table.add_column(escape(name))
    for one in standings:
        rate = one.win_rate
        needed = None if rate is None else rate.win_rate.prompts_needed(0.5)
        table.add_row(
            escape(one.dimension or "(none)"),
            escape(one.model),
            _percent(rate.win_rate) if rate is not None else "",
            _percent(one.length_controlled),
            _points(one.rating) if one.model != results.start else "0",
            "" if one.best is None else f"{one.best:.0%}",
            f"{results.mean_tokens[one.model]:.0f}" if one.model in results.mean_tokens else "",
            "" if needed is None else f"about {needed:,} prompts would tell",
        )
    return table


def _percent(found: "Estimate | None") -> str:
    return "" if found is None else f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def _points(found: "Estimate | None") -> str:
    return "" if found is None else f"{found.value:+.0f} ({found.low:+.0f} to {found.high:+.0f})"

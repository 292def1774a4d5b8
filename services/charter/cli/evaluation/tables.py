"""The figures of an evaluation on a terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from charter.cli.evaluation.answer_tables import print_answers
from charter.cli.evaluation.cells import chance, percent, points, would_tell
from charter.cli.output import print_table
from charter.evaluation.compare.replies import cannot_tell

if TYPE_CHECKING:
    from charter.evaluation.compare.replies import ReplyFigures
    from charter.evaluation.compare.results import Cell, Results, Standing

# What an open verdict is called, by figure: short, for the table is wide.
_OPEN = {"win_rate": "wins", "length_controlled": "long", "rating": "rating"}


def print_results(results: "Results", say: Console) -> None:
    """A table for each judge, with what must be said of it, how far judges agree, and what the answers are like."""
    for what, count in results.missing.items():
        say.print(
            f"[yellow]Not finished: {count} {escape(what)} are missing; `charter evaluate SPEC` asks for them.[/]"
        )
    for judge, about in results.judges.items():
        constitution = about.get("constitution_name", "")
        named = f"{about.get('model', '')} by {about.get('method', '')}{constitution and f', {constitution}'}"
        say.print(f"\n[bold]{escape(judge)}[/] [dim]{escape(named)}[/]", soft_wrap=True)
        for remark in results.remarks[judge]:
            say.print(f"[yellow]{escape(remark)}[/]", soft_wrap=True)
        standings = [one for one in results.standings if one.judge == judge]
        print_table(_table(results, standings), say)
        if any(count is not None for one in standings for count in one.prompts_needed().values()):
            say.print("[dim]open: about so many prompts would tell[/]", soft_wrap=True)
        if len(results.models) > 2:
            for dimension in dict.fromkeys(one.dimension for one in standings):
                _print_matrix(results, judge, dimension, say)
        for note in dict.fromkeys(note for one in standings for note in one.notes):
            say.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
        refusals = [one for one in results.refusals if one.judge == judge]
        if any(one.refusals for one in refusals):
            print_table(_refusals(refusals), say)
            if doubt := cannot_tell(refusals[0].entropy):
                say.print(f"[yellow]{escape(doubt)}[/]", soft_wrap=True)
        for figures in refusals:
            if figures.note:
                say.print(f"[dim]{escape(figures.note)}[/]", soft_wrap=True)
        if words := results.judgements_left_out[judge].in_words():
            say.print(f"judgements: {escape(words)}", soft_wrap=True)
    if results.agreements:
        say.print("\n[bold]Agreement of judges[/] [dim]on pairs of different answers[/]")
        print_table(_agreement(results), say)
    print_answers(results, say)


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
        needed = one.prompts_needed()
        table.add_row(
            escape(one.dimension or "(none)"),
            escape(one.model),
            percent(None if one.win_rate is None else one.win_rate.win_rate),
            percent(one.length_controlled),
            points(one.rating) if one.model != results.start else "0",
            "" if one.best is None else chance(one.best),
            f"{results.mean_tokens[one.model]:.0f}" if one.model in results.mean_tokens else "",
            "\n".join(f"{_OPEN[figure]} {count:,}" for figure, count in needed.items() if count is not None),
        )
    return table


def _print_matrix(results: "Results", judge: str, dimension: str, say: Console) -> None:
    """How often the model of the row is preferred to that of the column, where more than the start was compared."""
    cells = {
        (one.model, one.against): one for one in results.matrix if (one.judge, one.dimension) == (judge, dimension)
    }
    if not any(results.start not in pair for pair in cells):
        return
    title = f"{dimension or '(none)'}: row preferred to column"
    table = Table(escape(title), *(escape(name) for name in results.models), box=None, pad_edge=False)
    for model in results.models:
        table.add_row(escape(model), *(_cell(cells.get((model, against))) for against in results.models))
    print_table(table, say)


def _cell(one: "Cell | None") -> str:
    if one is None:
        return ""
    open_verdict = one.win_rate.win_rate.is_open(0.5)
    return f"{one.win_rate.win_rate.value:.0%}" + (" open" if open_verdict else "")


def _refusals(found: Iterable["ReplyFigures"]) -> Table:
    """The mean probability of each kind; of declining beside it how often that is the likeliest."""
    table = Table("model", "prompts", "declines", "likeliest", box=None, pad_edge=False)
    for name in ("answers", "in part", "gives a reason", "gives none", "failed"):
        table.add_column(name)
    for one in found:
        if one.refusals is None:
            continue
        for prompts, rates in (("harmful", one.refusals.harmful), ("look-alike", one.refusals.harmless)):
            shares = [f"{share.value:.1%}" for share in rates.shares.values()]
            likely = f"{rates.declines_likeliest:.1%}"
            table.add_row(
                escape(one.model), prompts, percent(rates.declined), likely, *shares, str(rates.failures or "")
            )
    return table


def _agreement(results: "Results") -> Table:
    table = Table("judges", "dimension", "pairs", "same", "kappa", "open", box=None, pad_edge=False)
    for one in results.agreements:
        kappa = one.kappa
        table.add_row(
            escape(f"{one.judge}, {one.other}"),
            escape(one.dimension or "(none)"),
            str(one.pairs),
            percent(one.same),
            escape(one.note) if kappa is None else f"{kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f})",
            would_tell({"": one.prompts_needed()["kappa"]}),
        )
    return table

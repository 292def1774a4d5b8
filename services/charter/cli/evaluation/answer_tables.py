"""What an evaluation's answers are like, on a terminal: how alike, phrases that rose, and which are missing."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from charter.cli.evaluation.cells import percent
from charter.cli.output import print_table, printable

if TYPE_CHECKING:
    from charter.evaluation.compare.results import Results

# Phrases of a model that are shown; the others are in result.json.
_PHRASES = 5


def print_answers(results: "Results", say: Console) -> None:
    """Tables over all models, whoever judged."""
    say.print("\n[bold]Answers[/] [dim]to all prompts[/]")
    print_table(_alike(results), say)
    for note in dict.fromkeys(note for one in results.texts.values() for note in one.notes):
        say.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
    for model in results.texts:
        _print_phrases(results, model, say)
    for named, left_out in (("answers", results.answers_left_out), ("likelihoods", results.likelihoods_left_out)):
        for model, one in left_out.items():
            if words := one.in_words():
                say.print(f"{named} of {escape(model)}: {escape(words)}", soft_wrap=True)


def _alike(results: "Results") -> Table:
    table = Table(box=None, pad_edge=False)
    under = f"nats a token under {escape(results.start)}"
    distinct = ("distinct 1-grams", "distinct 4-grams")
    for name in ("model", *distinct, "repeats within", "same as to another prompt", "self-BLEU", under):
        table.add_column(name)
    for model, one in results.texts.items():
        found = one.diversity
        alike = (found.distinct[1], found.distinct[4], found.repeated, found.same_as_another) if found else (None,) * 4
        nats = one.nats_per_token
        table.add_row(
            escape(model),
            *map(percent, (*alike, one.self_bleu)),
            "" if nats is None else f"{nats.value:.2f} ({nats.low:.2f} to {nats.high:.2f})",
        )
    return table


def _print_phrases(results: "Results", model: str, say: Console) -> None:
    found = results.texts[model].boilerplate
    if found is None:
        return
    named = f"Phrases that {escape(model)} says more than {escape(results.start)}"
    if not found.phrases:
        none = f"none of {found.tested:,} tested" if found.tested else "none is frequent enough to be tested"
        say.print(f"\n[bold]{named}[/]: {none}", soft_wrap=True)
        return
    shown = found.phrases[:_PHRASES]
    more = f", {len(shown)} of {len(found.phrases)}" if len(shown) < len(found.phrases) else ""
    say.print(f"\n[bold]{named}[/] [dim]share of answers, of {found.tested:,} tested{more}[/]", soft_wrap=True)
    table = Table("phrase", escape(model), escape(results.start), "rise", box=None, pad_edge=False)
    for one in shown:
        text = f"… {one.text} (end)" if one.kind == "ending" else one.text
        table.add_row(escape(printable(text)), f"{one.share:.0%}", f"{one.share_of_start:.0%}", percent(one.rise))
    print_table(table, say)

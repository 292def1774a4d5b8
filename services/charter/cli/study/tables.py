"""The figures of a study on a terminal."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from charter.cli.evaluation.cells import chance, percent, points
from charter.cli.output import print_table

if TYPE_CHECKING:
    from charter.study.fronts import Front
    from charter.study.results import StudyResults


def print_results(results: "StudyResults", say: Console) -> None:
    """Of each judge where the arms end, with what must be said of it."""
    for one in results.missing:
        say.print(f"[yellow]Missing: {escape(one)}[/]", soft_wrap=True)
    for judged in results.judges:
        say.print(f"\n[bold]By {escape(judged.judge)}[/] [dim]{escape(str(judged.about.get('model', '')))}[/]")
        for remark in judged.remarks:
            say.print(f"[yellow]{escape(remark)}[/]", soft_wrap=True)
        if judged.as_judged is not None:
            print_table(_table(results, judged.as_judged, judged.equally_long), say)
            if judged.as_judged.degrees == 0:
                say.print("[dim]One seed: intervals are over prompts alone, and other seeds may give others.[/]")
        for note in judged.notes:
            say.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def _table(results: "StudyResults", front: "Front", equally_long: "Front | None") -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("arm", "on", "rating", "preferred to the start", "equally long", "on the front", "tokens"):
        table.add_column(name)
    tokens = {one.arm: one.tokens for one in results.arms}
    for spot in front.ends:
        controlled = equally_long.end(spot.arm) if equally_long is not None else None
        for place, (axis, rating) in enumerate(zip(results.axes, (spot.across, spot.up), strict=True)):
            counted = tokens.get(spot.arm)
            about = (chance(front.on_front[spot.arm]), "" if counted is None else f"{counted:.0f}")
            table.add_row(
                escape(spot.arm) if place == 0 else "",
                escape(axis),
                points(rating),
                percent(spot.preferred[place]),
                percent(None if controlled is None else controlled.preferred[place]),
                *(about if place == 0 else ("", "")),
            )
    return table

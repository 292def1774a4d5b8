"""Progress bars on a terminal, as all long commands draw them; elsewhere a command prints lines."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn
from rich.table import Column


class Bars:
    """Context in which bars are drawn, if the console is a terminal."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._console = console
        self._bars = Progress(SpinnerColumn(finished_text="[green]✔[/]"), *columns, console=console)

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing; what was drawn stays."""
        if self._console.is_terminal:
            self._bars.stop()


def bar_column() -> BarColumn:
    """How far it is, to be seen."""
    return BarColumn(bar_width=20, table_column=Column(min_width=8))


def count_column(width: int = 9) -> MofNCompleteColumn:
    """How many are done, of how many."""
    return MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=width))

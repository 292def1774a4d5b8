"""Shows an evaluation while it goes: a bar for each model and judge, or elsewhere than on a terminal some lines."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID, TextColumn, TimeElapsedColumn

from charter.cli.bars import Bars, bar_column, count_column

# Seconds between two lines of one stage.
_LINE_SECONDS = 5.0


class EvaluationProgress(Bars):
    """Context in which progress is shown."""

    def __init__(self, console: Console) -> None:
        described, text = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
        super().__init__(console, described, bar_column(), count_column(), TimeElapsedColumn(), text)
        self._tasks: dict[str, TaskID] = {}
        self._line = ("", 0.0)

    def show(self, stage: str, done: int, total: int, text: str) -> None:
        """So many of a stage's items are done; ``text`` says what was left out."""
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(escape(stage), total=total, text="")
            self._bars.update(self._tasks[stage], completed=done, total=total, text=escape(text))
            return
        last, at = self._line
        if stage == last and done < total and time.monotonic() - at < _LINE_SECONDS:
            return
        self._line = (stage, time.monotonic())
        parts = (time.strftime("%H:%M:%S"), escape(stage), f"{done}/{total}", escape(text))
        self._console.print("  ".join(part for part in parts if part), soft_wrap=True)

"""Shows the runs of a study while they go: a bar for all, and one for each that is under way; elsewhere some lines."""

import threading
import time
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID, TextColumn, TimeElapsedColumn

from charter.cli.bars import Bars, bar_column, count_column
from charter.cli.runs.progress import NUMBERS, phase_name
from charter.cli.study.words import duration, run_words
from charter.study.folder import StudyRun
from charter.study.spec import StudySpec
from charter.v1 import run_pb2

# Seconds between two lines of one run in one phase.
_LINE_SECONDS = 10.0


class RunsProgress(Bars):
    """Context in which events of several runs are shown, from any thread."""

    def __init__(self, console: Console, spec: StudySpec, total: int) -> None:
        described, numbers = TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}")
        super().__init__(console, described, bar_column(), count_column(7), TimeElapsedColumn(), numbers)
        self._lock = threading.Lock()
        self._all = self._bars.add_task(f"runs of {escape(spec.name)}", total=total, numbers="")
        self._tasks: dict[tuple[str, int], TaskID] = {}
        # Of each run the phase of the last line, and when that was.
        self._lines: dict[tuple[str, int], tuple[int, float]] = {}

    def done(self, runs: Iterable[StudyRun]) -> None:
        """Count those that were done before."""
        self._bars.update(self._all, completed=sum(run.succeeded for run in runs))

    def begin(self, run: StudyRun, resumed: bool) -> None:
        """A run begins, or goes on."""
        with self._lock:
            self._tasks[run.key] = self._bars.add_task(f"  {run_words(run)}", total=None, numbers="")
            if not self._console.is_terminal:
                self._say(f"{run_words(run)} {'goes on' if resumed else 'begins'}: {run.run}")

    def show(self, run: StudyRun, event: run_pb2.RunEvent, spec: run_pb2.RunSpec) -> None:
        """Draw an event of a run by ``spec``."""
        phase = phase_name(event.phase, spec)
        numbers = "  ".join(text.format(event.metrics[name]) for name, text in NUMBERS.items() if name in event.metrics)
        with self._lock:
            if self._console.is_terminal:
                self._bars.update(self._tasks[run.key], description=f"  {run_words(run)}: {phase}")
                if event.total:
                    self._bars.update(self._tasks[run.key], completed=event.done, total=event.total)
                if numbers:
                    self._bars.update(self._tasks[run.key], numbers=numbers)
                return
            last, at = self._lines.get(run.key, (-1, 0.0))
            whole = 0 < event.total <= event.done
            if last == event.phase and not whole and time.monotonic() - at < _LINE_SECONDS:
                return
            self._lines[run.key] = (event.phase, time.monotonic())
            count = f"{event.done}/{event.total}" if event.total else ""
            self._say("  ".join(part for part in (run_words(run), phase, count, numbers) if part))

    def end(self, run: StudyRun) -> None:
        """A run has ended."""
        with self._lock:
            if (task := self._tasks.pop(run.key, None)) is not None:
                self._bars.remove_task(task)
            if run.succeeded:
                self._bars.advance(self._all)
                self._say(f"[green]✔[/] {run_words(run)}, {duration(run.seconds)}")
            else:
                why = f": {escape(run.error)}" if run.error else ""
                self._say(f"[red]✘[/] {run_words(run)} {run.state.lower()}{why}")

    def note(self, text: str) -> None:
        """Say something between."""
        with self._lock:
            self._say(escape(text))

    def _say(self, text: str) -> None:
        clock = "" if self._console.is_terminal else f"{time.strftime('%H:%M:%S')}  "
        self._bars.console.print(f"{clock}{text}", soft_wrap=True)

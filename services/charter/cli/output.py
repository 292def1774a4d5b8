"""What every command prints with: one console, results as text or JSON, failures with an exit code."""

import errno
import json
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.segment import Segments
from rich.table import Table

# Exit status after Ctrl-C.
INTERRUPTED = 130

# Errors whose message is for a person: module and class. Named, not imported: whoever raises one has imported it, and
# `--help` needs none of them.
_FOR_A_PERSON = (
    ("charter.environment", "EnvironmentVariableError"),
    ("charter.state_files", "StateFileError"),
    ("charter.rpc.errors", "ServiceError"),
    ("charter.spec.problems", "SpecError"),
    ("charter.spec.constitution", "ConstitutionError"),
)

# Characters of the widest table.
_WIDEST = 10_000

# Names may hold what looks like the code of an emoji: `hub:org/name:a:b`.
console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def printable(text: str) -> str:
    """Text of a model or a stranger, safe for a terminal: control and invisible characters are written as escapes.

    Line breaks and tabs stay. Rich's markup is not touched: ``rich.markup.escape`` does that.
    """
    return "".join(one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text)


def shortened(text: str, most: int) -> str:
    """Text as one printable line of at most ``most`` characters."""
    line = printable(" ".join(text[: 8 * most].split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def print_table(table: Table, say: Console = console) -> None:
    """Print a table of which nothing is cut, neither a column's name nor an address or path.

    In a terminal that is too narrow texts wrap between words; where that is not enough, the terminal wraps its lines.
    """
    for column in table.columns:
        column.overflow = "fold"
        # Else rich would take from a wide word first, and leave the spaces of other columns.
        cells = (column.header, *column.cells)
        column.no_wrap |= not any(" " in str(cell) for cell in cells)
        if column.no_wrap:
            wide = say.options.update(max_width=_WIDEST)
            column.min_width = max(Measurement.get(say, wide, cell).maximum for cell in cells)
    needed = Measurement.get(say, say.options.update(max_width=_WIDEST), table)
    width = max(needed.minimum, min(needed.maximum, say.width))
    lines = say.render(table, say.options.update(width=width, max_width=width))
    say.print(Segments(lines), end="", soft_wrap=True)


def fail(problem: str | Exception, code: int = 1) -> NoReturn:
    """Say what went wrong on stderr, as it stands, and end with a non-zero exit code."""
    message = file_words(problem) if isinstance(problem, OSError) else str(problem)
    errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def words_of(error: Exception) -> str:
    """What a failure says to a person; empty for one that tells only a programmer something."""
    classes = [getattr(sys.modules[module], name) for module, name in _FOR_A_PERSON if module in sys.modules]
    if isinstance(error, tuple(classes)):
        return str(error)
    # Of a file that an argument or a variable names. A reader that ended early (EPIPE) is no failure.
    if isinstance(error, OSError) and error.filename is not None and error.errno != errno.EPIPE:
        return file_words(error)
    return ""


def file_words(error: OSError) -> str:
    """Why a file cannot be used, without Python's own words."""
    reason = error.strerror or type(error).__name__
    return f"{error.filename}: {reason[:1].lower()}{reason[1:]}" if error.filename is not None else str(error)


def emit_json(result: Any) -> None:
    """Print a result as JSON on stdout and nothing else."""
    # Escapes are JSON everywhere; other encodings lack most characters.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    json.dump(result, sys.stdout, indent=2, ensure_ascii=not unicode)
    sys.stdout.write("\n")

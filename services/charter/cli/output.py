"""What every command prints with: one console, results as text or JSON, failures with an exit code."""

import json
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

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


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what went wrong on stderr, as it stands, and end with a non-zero exit code."""
    errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def emit_json(result: Any) -> None:
    """Print a result as JSON on stdout and nothing else."""
    json.dump(result, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")

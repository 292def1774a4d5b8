"""What every command prints with: one console, results as text or JSON, failures with an exit code."""

import json
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what went wrong on stderr and end with a non-zero exit code."""
    errors.print(f"[bold red]error:[/] {message}", soft_wrap=True)
    raise typer.Exit(code)


def emit_json(result: Any) -> None:
    """Print a result as JSON on stdout and nothing else."""
    json.dump(result, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")

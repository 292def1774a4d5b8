"""`charter check`: every mistake in a spec and in the files that it names, before anything is started."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from charter.cli.output import JsonOption, console, emit_json, fail
from charter.spec.checks import check_file
from charter.spec.problems import SpecError

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="Run spec, a YAML file.")]
RemoteOption = Annotated[
    bool, typer.Option("--remote", help="The run is for a cluster: its models, and absolute files, are there.")
]


def check(spec: SpecArgument, remote: RemoteOption = False, as_json: JsonOption = False) -> None:
    """Find every mistake in a spec and in the files that it names, offline.

    Prompts, constitution and counts are looked at as well; no model is loaded and no service is called. `charter up`,
    `charter run`, the trainer and the worker check the same. Exit code 1 when anything is wrong.
    """
    try:
        file = check_file(spec, remote, to_serve=not remote)
        found = [(file.line(one), one) for one in file.problems]
    except SpecError as error:
        # Not a spec at all.
        if not as_json:
            raise
        emit_json({"valid": False, "problems": [{"problem": one} for one in error.problems]})
        raise typer.Exit(1) from None
    if as_json:
        problems = [{"line": line, "field": one.field, "problem": one.text} for line, one in found]
        emit_json({"valid": not problems, "problems": problems})
        raise typer.Exit(1 if problems else 0)
    if found:
        fail("\n".join(f"{spec}:{line}: {one}" for line, one in found))
    console.print(f"{escape(str(spec))} is valid.", soft_wrap=True)

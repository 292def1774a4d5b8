"""`charter check`: every mistake in a spec and in the files that it names, before anything is started."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from charter.cli.output import JsonOption, console, emit_json, errors, fail
from charter.data.errors import DataError
from charter.data.hub import PREFIX, HubSet
from charter.data.sources import Source
from charter.spec.checks import check_file
from charter.spec.data_sources import data_sources
from charter.spec.load import SpecFile
from charter.spec.problems import SpecError

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="Run spec, a YAML file.")]
RemoteOption = Annotated[
    bool, typer.Option("--remote", help="The run is for a cluster: its models, and absolute files, are there.")
]


FetchOption = Annotated[
    bool, typer.Option("--fetch", help="First fetch the data sets of the hub that it names, to look into them.")
]


def check(
    spec: SpecArgument, remote: RemoteOption = False, fetch: FetchOption = False, as_json: JsonOption = False
) -> None:
    """Find every mistake in a spec and in the files that it names, offline.

    Prompts, data, constitution and counts are looked at as well; no model is loaded and no service is called. `charter
    up`, `charter run`, the trainer and the worker check the same. Exit code 1 when anything is wrong.
    """
    try:
        if fetch:
            _fetch(spec, remote, errors if as_json else console)
        checked = check_file(spec, remote, to_serve=not remote)
    except SpecError as error:
        # Not a spec at all.
        if not as_json:
            raise
        emit_json({"valid": False, "problems": [{"problem": one} for one in error.problems]})
        raise typer.Exit(1) from None
    file = checked.file
    if as_json:
        lists = {"problems": file.problems, "not_looked_into": checked.unread, "remarks": checked.remarks}
        found = {
            name: [{"line": file.line(one), "field": one.field, "problem": one.text} for one in listed]
            for name, listed in lists.items()
        }
        emit_json({"valid": not file.problems, **found})
        raise typer.Exit(1 if file.problems else 0)
    if file.problems:
        fail("\n".join(f"{spec}:{file.line(one)}: {one}" for one in file.problems))
    console.print(f"{escape(str(spec))} is valid.", soft_wrap=True)
    for one in checked.remarks:
        console.print(f"{escape(str(spec))}:{file.line(one)}: {escape(str(one))}", soft_wrap=True)
    if checked.unread:
        console.print("Not looked into:", style="yellow")
        for one in checked.unread:
            console.print(f"  {escape(str(one))}", soft_wrap=True)
        if any(PREFIX in one.text for one in checked.unread):
            console.print(f"`charter check --fetch {escape(str(spec))}` fetches data of the hub and looks into it.")


def _fetch(path: Path, remote: bool, say: Console) -> None:
    """Bring the data sets of the hub into its cache; what is wrong with a name is said when the spec is checked."""
    for field, source in data_sources(SpecFile(path, remote).spec):
        if source.of_hub and _is_name(source):
            say.print(f"fetching {escape(str(source))}", soft_wrap=True)
            try:
                source.files()
            except DataError as error:
                raise SpecError([f"{path}: {field}: {error}"]) from error


def _is_name(source: Source) -> bool:
    try:
        return bool(HubSet.parse(source.place))
    except DataError:
        return False

"""`charter init`: the files of a first run, to be changed."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from charter.cli.output import JsonOption, console, emit_json, fail
from charter.spec.starter import StarterError, write_starter

ModelOption = Annotated[str, typer.Option(help="The model to align: a hub id, or a folder.", metavar="ID_OR_FOLDER")]
FolderArgument = Annotated[Path, typer.Argument(help="Folder to write into. Default: this one.", metavar="[FOLDER]")]


def init(model: ModelOption, folder: FolderArgument = Path(), as_json: JsonOption = False) -> None:
    """Write a commented run spec, a constitution and a few prompts for a model.

    They pass `charter check` as they are. Nothing is overwritten.
    """
    try:
        written = write_starter(model, folder)
    except StarterError as error:
        fail(error)
    if as_json:
        emit_json({"files": [str(path) for path in written]})
        return
    for path in written:
        console.print(f"wrote {escape(str(path))}", soft_wrap=True)
    steps = ", ".join(f"charter {step} {written[0]}" for step in ("check", "up", "run"))
    console.print(f"Change them to what you want, then: {escape(steps)}", soft_wrap=True)

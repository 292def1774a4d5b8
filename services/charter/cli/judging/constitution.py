"""`charter constitution`: checks, compares and shows constitution files."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli.output import JsonOption, console, emit_json, fail, print_table
from charter.spec.constitution import Constitution, ConstitutionError, from_proto, load_constitution

FileArgument = Annotated[Path, typer.Argument(help="YAML file of a constitution.")]


def check(file: FileArgument, as_json: JsonOption = False) -> None:
    """Check a file; every problem is named with its line and field."""
    constitution = _load(file)
    if as_json:
        emit_json(_summary(constitution))
        return
    found = _summary(constitution)
    dimensions = ", ".join(f"{name} {count}" for name, count in found["dimensions"].items())
    console.print(
        f"{escape(str(file))} is valid: {escape(constitution.name)} version {escape(constitution.version)}, "
        f"{found['principles']} principles ({dimensions}), sha256 {constitution.digest[:12]}"
    )


def diff(
    a: Annotated[Path, typer.Argument(help="The old file.")],
    b: Annotated[Path, typer.Argument(help="The new file.")],
    as_json: JsonOption = False,
) -> None:
    """Show what changed from one constitution to another.

    A principle that changed is shown field by field.
    """
    changes = list(differences(_load(a), _load(b)))
    if as_json:
        emit_json(changes)
        return
    if not changes:
        console.print("The constitutions say the same.")
        return
    for change in changes:
        what = escape(" ".join(part for part in (change["principle"], change["field"]) if part))
        console.print(f"[bold]{change['change']}[/] {what}")
        if change["change"] == "changed":
            console.print(f"  [red]- {escape(str(change['old']))}[/]\n  [green]+ {escape(str(change['new']))}[/]")


def show(
    file: Annotated[Path | None, typer.Argument(help="YAML file. Default: what the judge service judges by.")] = None,
    address: Annotated[str, typer.Option(help="The judge service, host:port. Default: that of `charter up`.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show a constitution: of a file, or the one that the judge is using."""
    constitution = _load(file) if file is not None else _served(address)
    if as_json:
        content = asdict(constitution)
        del content["source_yaml"]
        emit_json(content | {"digest": constitution.digest})
        return
    console.print(f"[bold]{escape(constitution.name)}[/] version {escape(constitution.version)}")
    console.print(f"{escape(constitution.description)}\n[dim]sha256 {constitution.digest}[/]\n")
    table = Table("principle", "dimension", "weight", "compares by")
    for principle in constitution.principles:
        table.add_row(principle.id, principle.dimension, f"{principle.weight:g}", escape(principle.compare))
    print_table(table)


def differences(old: Constitution, new: Constitution) -> Iterator[dict[str, Any]]:
    """The changes, each with principle (empty for the constitution itself), field, old and new."""
    for name in ("name", "version", "description"):
        if getattr(old, name) != getattr(new, name):
            yield _change("changed", "", name, getattr(old, name), getattr(new, name))
    before = {principle.id: asdict(principle) for principle in old.principles}
    after = {principle.id: asdict(principle) for principle in new.principles}
    for principle_id in (one for one in before if one not in after):
        yield _change("removed", principle_id, "", before[principle_id], None)
    for principle_id, fields in after.items():
        if principle_id not in before:
            yield _change("added", principle_id, "", None, fields)
            continue
        for field, value in fields.items():
            if before[principle_id][field] != value:
                yield _change("changed", principle_id, field, before[principle_id][field], value)


def _change(change: str, principle: str, field: str, old: Any, new: Any) -> dict[str, Any]:
    return {"change": change, "principle": principle, "field": field, "old": old, "new": new}


def _load(file: Path) -> Constitution:
    try:
        return load_constitution(file)
    except ConstitutionError as error:
        count = len(error.problems)
        fail(f"{file} has {count} problem{'s' if count > 1 else ''}:\n{error}")
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}")


def _served(address: str) -> Constitution:
    # Here, not at the top: a file is checked without calling anyone.
    from charter.cli.calls import channel_to
    from charter.rpc.channel import QUICK
    from charter.v1 import judge_pb2, judge_pb2_grpc

    with channel_to("judge", address) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        return from_proto(stub.GetConstitution(judge_pb2.GetConstitutionRequest(), timeout=QUICK).constitution)


def _summary(constitution: Constitution) -> dict[str, Any]:
    dimensions: dict[str, int] = {}
    for principle in constitution.principles:
        dimensions[principle.dimension] = dimensions.get(principle.dimension, 0) + 1
    return {
        "name": constitution.name,
        "version": constitution.version,
        "digest": constitution.digest,
        "principles": len(constitution.principles),
        "dimensions": dimensions,
    }

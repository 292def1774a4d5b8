"""Commands that are imported when they are called, so that `charter --help` waits for no library."""

import importlib
from collections.abc import Iterable, MutableMapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommand(TyperCommand):
    """Stands for the command that a function makes, known by its line of help, until it is called.

    ``target`` names the function without its package: ``runs.run:run`` is ``run`` of ``charter.cli.runs.run``.
    """

    def __init__(self, name: str, target: str, help: str) -> None:
        super().__init__(name, help=help)
        self.target = target
        # By their words, commands that stand behind the word of this one.
        self.others: dict[str, LazyCommand] = {}

    def load(self) -> TyperCommand:
        """The command itself."""
        module, _, function = self.target.partition(":")
        app = typer.Typer(add_completion=False)
        app.command(self.name)(getattr(importlib.import_module(f"charter.cli.{module}"), function))
        loaded = typer.main.get_command(app)
        assert isinstance(loaded, TyperCommand)
        return loaded

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Context of the command itself, which its caller then runs, or of the one that the first word is for."""
        if args and (other := self.others.get(args[0])) is not None:
            return other.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return self.load().make_context(info_name, args, parent, **extra)


def tree(table: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """Commands and groups by name, from rows of path, target and line of help; a group's target is empty."""
    root = TyperGroup()
    for path, target, help in table:
        *above, name = path.split()
        place: MutableMapping[str, Any] = root.commands
        for part in above:
            found = place[part]
            place = found.others if isinstance(found, LazyCommand) else found.commands
        place[name] = (
            LazyCommand(name, target, help) if target else TyperGroup(name=name, help=help, no_args_is_help=True)
        )
    return dict(root.commands)

"""Files and model folders that a spec names: resolved against the folder of the spec's file, and compared."""

import os
from dataclasses import replace
from pathlib import Path

from charter.data.errors import DataError
from charter.data.hub import HubSet, meant_for_hub
from charter.data.sources import Source
from charter.spec.chat_form import CHATML, TEMPLATE_ENDINGS
from charter.spec.data_sources import change_data_sources
from charter.spec.problems import Problem
from charter.v1 import run_pb2

# Engines of a judge whose model is no folder.
_REMOTE_JUDGES = ("openai", "fake", "external")


def same_model(served: str, wanted: str) -> bool:
    """Whether two names mean the same model: the same hub id, or the same folder of this machine."""
    if served == wanted:
        return True
    one, other = Path(served).expanduser(), Path(wanted).expanduser()
    return one.is_dir() and other.is_dir() and one.resolve() == other.resolve()


class PathResolver:
    """Makes the files and model folders that a spec names absolute, against ``base``.

    With ``remote`` the run is for another machine: its models are there, and so are absolute files that are not here.
    ``problems`` gets one for each that does not exist.
    """

    def __init__(self, base: Path, remote: bool = False) -> None:
        self._base, self._remote = base, remote
        self.problems: list[Problem] = []

    def file(self, field: str, value: str, hint: str = "") -> str:
        """A file."""
        try:
            path = _absolute(self._base, value)
        except ValueError as error:
            self._add(field, f"no such file: {error}")
            return value
        if self._remote and value.startswith("/") and not path.exists():
            return value
        if path.is_dir():
            self._add(field, f"is a folder, not a file: {path}")
        elif not path.exists():
            self._add(field, f"no such file: {path}{hint}")
        return str(path)

    def model(self, field: str, value: str) -> str:
        """A model's folder; a hub id, which never starts like a path, stays as it is."""
        if self._remote:
            if value.startswith((".", "~")):
                self._add(field, f"`{value}` is a folder here; name one there, as /models/NAME, or a hub id")
            return value
        try:
            path = _absolute(self._base, value)
        except ValueError as error:
            self._add(field, f"no such model folder: {error}")
            return value
        if path.is_dir():
            return str(path)
        if value.startswith((".", "/", "~")) or path.exists():
            self._add(field, f"no such model folder: {path}")
        return value

    def template(self, field: str, value: str) -> str:
        """A chat template: a file; a folder, or what is neither, is a model to take one from."""
        if value in ("", CHATML):
            return value
        is_file = value.lower().endswith(TEMPLATE_ENDINGS) or os.path.isfile(self._base / value)
        return self.file(field, value) if is_file else self.model(field, value)

    def data(self, field: str, source: Source) -> Source:
        """A source of data."""
        if not source.of_hub:
            return replace(source, place=self.file(field, source.place, meant_for_hub(source.place)))
        try:
            HubSet.parse(source.place)
        except DataError as error:
            self._add(field, str(error))
        return source

    def _add(self, field: str, text: str) -> None:
        self.problems.append(Problem(field, text))


def resolve_paths(spec: run_pb2.RunSpec, base: Path, remote: bool = False) -> list[Problem]:
    """Make every file and local model folder of ``spec`` absolute, in place; ``remote`` as of ``PathResolver``.

    Returns a problem for each one that does not exist.
    """
    paths = PathResolver(base, remote)
    change_data_sources(spec, paths.data, base)
    for name in ("constitution", "calibration"):
        if value := getattr(spec.judge, name):
            setattr(spec.judge, name, paths.file(f"judge.{name}", value))
    if spec.policy.engine != "fake" and spec.policy.model:
        spec.policy.model = paths.model("policy.model", spec.policy.model)
    if spec.policy.chat_template:
        spec.policy.chat_template = paths.template("policy.chat_template", spec.policy.chat_template)
    if spec.judge.engine not in _REMOTE_JUDGES and spec.judge.model:
        spec.judge.model = paths.model("judge.model", spec.judge.model)
    if spec.preference_model.model:
        spec.preference_model.model = paths.model("preference_model.model", spec.preference_model.model)
    return paths.problems


def _absolute(base: Path, value: str) -> Path:
    """Raises ``ValueError`` with the reason for what is no path, and for one that may not be looked at."""
    shown = value if len(value) <= 80 else f"{value[:79]}…"
    if "\0" in value:
        raise ValueError(f"{shown!r} holds a NUL character")
    try:
        path = (base / Path(value).expanduser()).resolve()
        # A name that is too long, or a folder that may not be entered.
        path.stat()
    except FileNotFoundError:
        return path
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror}") from error
    except RuntimeError as error:
        # An unknown user, or links in a circle.
        raise ValueError(f"{shown}: {error}") from error
    return path

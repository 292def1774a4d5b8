"""What the files hold that a spec names, and what is wrong in them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.data.errors import MOST_NAMED, DataError
from charter.data.pairs.labelled import read_labelled_pairs
from charter.data.prompts import TaskPrompt, read_prompts
from charter.data.sources import Source
from charter.spec.bad_rows import bad_rows_of
from charter.spec.constitution import Constitution, ConstitutionError, load_constitution
from charter.spec.problems import Problem
from charter.v1 import run_pb2


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of a spec. None stands for what could not be read whole; ``problems`` say why."""

    # Different prompts only, in the order of the files.
    train: Sequence[TaskPrompt] | None
    held_out: Sequence[TaskPrompt] | None
    constitution: Constitution | None
    problems: Sequence[Problem]


def read_contents(spec: run_pb2.RunSpec, absent_files: bool) -> Contents:
    """Read the files of a filled spec. With ``absent_files`` those that are not here are somewhere else."""
    problems: list[Problem] = []
    train = _prompts(spec, "train", absent_files, problems)
    held_out = _prompts(spec, "held_out", absent_files, problems)
    if train is not None and held_out is not None:
        problems += _shared(train, held_out)
    constitution = _constitution(spec.judge.constitution, absent_files, problems)
    _labelled_pairs(spec, absent_files, problems)
    return Contents(train, held_out, constitution, problems)


def _prompts(
    spec: run_pb2.RunSpec, part: str, absent_files: bool, problems: list[Problem]
) -> Sequence[TaskPrompt] | None:
    sources: Sequence[str] = getattr(spec.prompts, part)
    found: dict[str, TaskPrompt] = {}
    whole = bool(sources)
    for index, source in enumerate(sources):
        field = f"prompts.{part}[{index}]"
        here = _here(source, field, absent_files, problems)
        if here is None:
            whole = False
            continue
        try:
            for prompt in read_prompts(here, bad_rows_of(spec)):
                found.setdefault(prompt.key, prompt)
        except DataError as error:
            whole = False
            problems += (Problem(field, line) for line in str(error).splitlines())
    return tuple(found.values()) if whole else None


def _here(source: str, field: str, absent_files: bool, problems: list[Problem]) -> str | None:
    """The source as it can be read without a network, or None. A file that must be here and is missing is a problem."""
    parsed = Source.parse(source)
    try:
        here = parsed.here()
    except DataError:
        # No name of a data set; who resolves the names of a spec says so.
        return None
    if here is None and not parsed.of_hub and not absent_files:
        problems.append(Problem(field, f"no such file: {parsed.place}"))
    return None if here is None else str(here)


def _shared(train: Iterable[TaskPrompt], held_out: Iterable[TaskPrompt]) -> list[Problem]:
    trained = {prompt.key for prompt in train}
    shared = [prompt for prompt in held_out if prompt.key in trained]
    if not shared:
        return []
    text = (
        f"{len(shared)} of its prompts are also in prompts.train, for example {shared[0].text[:80]!r}: remove them "
        "from one of the two"
    )
    return [Problem("prompts.held_out", text, ("prompts.train",))]


def _constitution(name: str, absent_files: bool, problems: list[Problem]) -> Constitution | None:
    if not name:
        return None
    # Never raises, whatever the name is.
    if not os.path.isfile(name):
        problems += [] if absent_files else [Problem("judge.constitution", f"no such file: {name}")]
        return None
    try:
        return load_constitution(Path(name))
    except ConstitutionError as error:
        more = len(error.problems) - MOST_NAMED
        lines = [*error.problems[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]
    except OSError as error:
        lines = [f"cannot read {name}: {error.strerror}"]
    problems += (Problem("judge.constitution", line) for line in lines)
    return None


def _labelled_pairs(spec: run_pb2.RunSpec, absent_files: bool, problems: list[Problem]) -> None:
    field = "judge.labelled_pairs"
    here = _here(spec.judge.labelled_pairs, field, absent_files, problems) if spec.judge.labelled_pairs else None
    if here is None:
        return
    try:
        read_labelled_pairs(here, bad_rows_of(spec))
    except DataError as error:
        problems += (Problem(field, line) for line in str(error).splitlines())

"""What the files hold that a spec names, and what is wrong in them."""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.data.conversations import conversations
from charter.data.errors import DataError
from charter.data.sources import Source
from charter.data.texts import texts
from charter.jsonl import MOST_NAMED, RowError
from charter.spec.constitution import Constitution, ConstitutionError, load_constitution
from charter.spec.labelled_pairs import read_labelled_pairs
from charter.spec.problems import Problem
from charter.spec.prompts import PromptFileError, TaskPrompt, read_prompts
from charter.v1 import run_pb2

# Of each source of texts and conversations.
_ROWS_LOOKED_AT = 1000


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
    train = _prompts(spec.prompts.train, "prompts.train", absent_files, problems)
    held_out = _prompts(spec.prompts.held_out, "prompts.held_out", absent_files, problems)
    if train is not None and held_out is not None:
        problems += _shared(train, held_out)
    constitution = _constitution(spec.judge.constitution, absent_files, problems)
    _labelled_pairs(spec.judge.labelled_pairs, absent_files, problems)
    if spec.HasField("pretraining"):
        _sources(spec.pretraining.data, "pretraining.data", texts, absent_files, problems)
        _sources(spec.pretraining.replay, "pretraining.replay", texts, absent_files, problems)
    if spec.HasField("supervised"):
        _sources(spec.supervised.data, "supervised.data", conversations, absent_files, problems)
    return Contents(train, held_out, constitution, problems)


def _prompts(
    paths: Sequence[str], field: str, absent_files: bool, problems: list[Problem]
) -> Sequence[TaskPrompt] | None:
    found: dict[str, TaskPrompt] = {}
    whole = bool(paths)
    for index, name in enumerate(paths):
        if not os.path.isfile(name):
            whole = False
            problems += [] if absent_files else [Problem(f"{field}[{index}]", f"no such file: {name}")]
            continue
        try:
            for prompt in read_prompts(Path(name)):
                found.setdefault(prompt.key, prompt)
        except PromptFileError as error:
            whole = False
            problems += (Problem(f"{field}[{index}]", line) for line in str(error).splitlines())
    return tuple(found.values()) if whole else None


def _sources(
    sources: Sequence[run_pb2.DataSource],
    field: str,
    read: Callable[[str], Iterable[object]],
    absent_files: bool,
    problems: list[Problem],
) -> None:
    """The beginning of each: a corpus is too large to be read through before a run begins."""
    for index, one in enumerate(sources):
        where = f"{field}[{index}].source"
        source = Source.parse(one.source)
        if source.place.startswith("hub:"):
            continue
        if not os.path.isfile(source.place):
            problems += [] if absent_files else [Problem(where, f"no such file: {source.place}")]
            continue
        try:
            looked_at = sum(1 for _ in itertools.islice(read(one.source), _ROWS_LOOKED_AT))
        except DataError as error:
            problems += (Problem(where, line) for line in str(error).splitlines())
            continue
        if not looked_at:
            problems.append(Problem(where, f"holds nothing to learn from: {source.place}"))


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


def _labelled_pairs(name: str, absent_files: bool, problems: list[Problem]) -> None:
    if not name:
        return
    if not os.path.isfile(name):
        problems += [] if absent_files else [Problem("judge.labelled_pairs", f"no such file: {name}")]
        return
    try:
        read_labelled_pairs(Path(name))
    except RowError as error:
        problems += (Problem("judge.labelled_pairs", line) for line in str(error).splitlines())
    except OSError as error:
        problems.append(Problem("judge.labelled_pairs", f"cannot read {name}: {error.strerror}"))

"""What the files hold that a spec names, and what is wrong in them."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from charter.data.bad_rows import BadRows
from charter.data.conversations import conversations
from charter.data.errors import MOST_NAMED, DataError
from charter.data.pairs.labelled import read_labelled_pairs
from charter.data.pairs.pair import Pair
from charter.data.pairs.read import pairs
from charter.data.prompts import TaskPrompt, read_prompts
from charter.data.sources import Source
from charter.data.texts import texts
from charter.data.thumbs import thumbs
from charter.outcomes import side
from charter.spec.bad_rows import bad_rows_of
from charter.spec.constitution import Constitution, ConstitutionError, load_constitution
from charter.spec.problems import Problem
from charter.v1 import run_pb2

T = TypeVar("T")

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
    train = _prompts(spec, "train", absent_files, problems)
    held_out = _prompts(spec, "held_out", absent_files, problems)
    if train is not None and held_out is not None:
        problems += _shared(train, held_out)
    constitution = _constitution(spec.judge.constitution, absent_files, problems)
    _labelled_pairs(spec, absent_files, problems)
    _sources(spec, "pretraining.data", spec.pretraining.data, texts, absent_files, problems)
    _sources(spec, "pretraining.replay", spec.pretraining.replay, texts, absent_files, problems)
    _sources(spec, "supervised.data", spec.supervised.data, conversations, absent_files, problems)
    _sources(spec, "revision.helpful", spec.revision.helpful, conversations, absent_files, problems)
    _sources(spec, "dpo.data", spec.dpo.data, _preferences, absent_files, problems)
    _thumbs(spec, absent_files, problems)
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


def _sources(
    spec: run_pb2.RunSpec,
    field: str,
    sources: Sequence[run_pb2.DataSource],
    read: Callable[[str, BadRows], Iterable[T]],
    absent_files: bool,
    problems: list[Problem],
) -> list[T] | None:
    """The beginning of each: a corpus is too large to be read through before a run begins.

    Returns what was read where that is all there is, else None.
    """
    found: list[T] = []
    whole = True
    for index, one in enumerate(sources):
        where = f"{field}[{index}].source"
        here = _here(one.source, where, absent_files, problems)
        if here is None:
            whole = False
            continue
        try:
            looked_at = list(itertools.islice(read(here, bad_rows_of(spec)), _ROWS_LOOKED_AT))
        except DataError as error:
            problems += (Problem(where, line) for line in str(error).splitlines())
            whole = False
            continue
        if not looked_at:
            problems.append(Problem(where, f"holds nothing to learn from: {one.source}"))
        found += looked_at
        whole = whole and 0 < len(looked_at) < _ROWS_LOOKED_AT
    return found if whole else None


def _preferences(source: str, bad: BadRows) -> Iterator[Pair]:
    """Pairs of which one answer is preferred."""
    for pair in pairs(source, bad, labelled=False):
        if pair.label is not None and side(pair.label) and pair.answer_a != pair.answer_b:
            yield pair


def _thumbs(spec: run_pb2.RunSpec, absent_files: bool, problems: list[Problem]) -> None:
    found = _sources(spec, "kto.data", spec.kto.data, thumbs, absent_files, problems)
    if found and not spec.kto.HasField("stored") and len({thumb.good for thumb in found}) == 1:
        verdict, other = ("up", "down") if found[0].good else ("down", "up")
        text = f"holds thumbs {verdict} only, and KTO learns from good and from bad answers: add some thumbs {other}"
        problems.append(Problem("kto.data", text))


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

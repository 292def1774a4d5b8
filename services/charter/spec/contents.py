"""What the files hold that a spec names, and what is wrong in them."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from charter.data.bad_rows import BadRows
from charter.data.conversations import Conversation, conversations
from charter.data.errors import MOST_NAMED, DataError
from charter.data.pairs.labelled import read_labelled_pairs
from charter.data.pairs.pair import Pair
from charter.data.pairs.read import pairs
from charter.data.prompts import TaskPrompt, read_prompts
from charter.data.sources import Source
from charter.data.texts import texts
from charter.data.thumbs import Thumb, thumbs
from charter.outcomes import side
from charter.shown import beginning
from charter.spec.bad_rows import bad_rows_of
from charter.spec.comparison_checks import ALL, ALL_TAKEN
from charter.spec.constitution import Constitution, ConstitutionError, load_constitution
from charter.spec.problems import Problem
from charter.v1 import run_pb2

T = TypeVar("T")

_NO_PREFERENCE = "holds no preference to learn from (ties, and pairs of one and the same answer, are none)"
# Of each source of texts and conversations.
_ROWS_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of a spec. None stands for what could not be read whole; ``problems`` say why.

    ``unread`` are the sources that are not on this machine, of which nothing is known.
    """

    # Different prompts only, in the order of the files.
    train: Sequence[TaskPrompt] | None
    held_out: Sequence[TaskPrompt] | None
    constitution: Constitution | None
    # The beginning of each source of conversations that is here, by its field.
    conversations: Mapping[str, Sequence[Conversation]]
    problems: Sequence[Problem]
    unread: Sequence[Problem]


def read_contents(spec: run_pb2.RunSpec, absent_files: bool) -> Contents:
    """Read the files of a filled spec. With ``absent_files`` those that are not here are somewhere else."""
    reader = _Reader(spec, absent_files)
    train, held_out = reader.prompts("train"), reader.prompts("held_out")
    if train is not None and held_out is not None:
        reader.problems += _shared(train, held_out)
    reader.compared_prompts({prompt.key for prompt in train or ()}, held_out or ())
    constitution = reader.constitution()
    reader.labelled_pairs()
    for name in ("data", "replay"):
        reader.beginnings(f"pretraining.{name}", getattr(spec.pretraining, name), texts)
    talks = reader.beginnings("supervised.data", spec.supervised.data, conversations)
    talks |= reader.beginnings("revision.helpful", spec.revision.helpful, conversations)
    reader.beginnings("dpo.data", spec.dpo.data, _preferences, _NO_PREFERENCE)
    rated = reader.beginnings("kto.data", spec.kto.data, thumbs)
    reader.problems += _one_kind_of_thumbs(spec, rated)
    return Contents(train, held_out, constitution, talks, reader.problems, reader.unread)


class _Reader:
    """Reads what is here of a spec's data; notes what is wrong in it, and what is not here."""

    def __init__(self, spec: run_pb2.RunSpec, absent_files: bool) -> None:
        self.problems: list[Problem] = []
        self.unread: list[Problem] = []
        self._spec = spec
        self._absent_files = absent_files

    def prompts(self, part: str) -> Sequence[TaskPrompt] | None:
        """All of a part, each once."""
        sources: Sequence[str] = getattr(self._spec.prompts, part)
        found: dict[str, TaskPrompt] = {}
        whole = bool(sources)
        for index, source in enumerate(sources):
            field = f"prompts.{part}[{index}]"
            here = self._here(source, field)
            if here is None:
                whole = False
                continue
            try:
                for prompt in read_prompts(here, bad_rows_of(self._spec)):
                    found.setdefault(prompt.key, prompt)
            except DataError as error:
                whole = False
                self._add(field, str(error).splitlines())
        return tuple(found.values()) if whole else None

    def compared_prompts(self, trained: set[str], held_out: Iterable[TaskPrompt]) -> None:
        """Only for what is wrong in them: too few, of those that are ``trained``, or of the dimension of figures."""
        compare = self._spec.evaluation.compare
        if self._spec.evaluation.HasField("compare") and not compare.prompts:
            # Compared in their place.
            if any(prompt.dimension == ALL for prompt in held_out):
                self._add("prompts.held_out", [f"has {ALL_TAKEN}"])
            return
        for index, one in enumerate(compare.prompts):
            field = f"evaluation.compare.prompts[{index}]"
            here = self._here(one.source, f"{field}.source")
            if here is None:
                continue
            try:
                dimensions = {prompt.key: prompt.dimension for prompt in read_prompts(here, bad_rows_of(self._spec))}
            except DataError as error:
                self._add(f"{field}.source", str(error).splitlines())
                continue
            there = dimensions.keys()
            if ALL in dimensions.values():
                self._add(f"{field}.source", [f"has {ALL_TAKEN}"])
            if shared := len(there & trained):
                self._add(f"{field}.source", [f"{shared} of its prompts are also in prompts.train: take them out"])
            if one.count > len(there):
                self._add(f"{field}.count", [f"is {one.count}, and {one.source} holds {len(there)} different ones"])

    def beginnings(
        self,
        field: str,
        sources: Sequence[run_pb2.DataSource],
        read: Callable[[str, BadRows], Iterable[T]],
        nothing: str = "holds nothing to learn from",
    ) -> dict[str, Sequence[T]]:
        """The beginning of each: a corpus is too large to be read through before a run begins."""
        found: dict[str, Sequence[T]] = {}
        for index, one in enumerate(sources):
            where = f"{field}[{index}].source"
            here = self._here(one.source, where)
            if here is None:
                continue
            try:
                found[where] = list(itertools.islice(read(here, bad_rows_of(self._spec)), _ROWS_LOOKED_AT))
            except DataError as error:
                self._add(where, str(error).splitlines())
                continue
            if not found[where]:
                self._add(where, [f"{nothing}: {one.source}"])
        return found

    def labelled_pairs(self) -> None:
        """Only for what is wrong in them."""
        field, source = "judge.labelled_pairs", self._spec.judge.labelled_pairs
        here = self._here(source, field) if source else None
        if here is None:
            return
        try:
            read_labelled_pairs(here, bad_rows_of(self._spec))
        except DataError as error:
            self._add(field, str(error).splitlines())

    def constitution(self) -> Constitution | None:
        """The judge's, where it is here and whole."""
        field, name = "judge.constitution", self._spec.judge.constitution
        if not name:
            return None
        # Never raises, whatever the name is.
        if not os.path.isfile(name):
            self._missing(field, name)
            return None
        try:
            return load_constitution(Path(name))
        except ConstitutionError as error:
            more = len(error.problems) - MOST_NAMED
            lines = [*error.problems[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]
        except OSError as error:
            lines = [f"cannot read {name}: {error.strerror}"]
        self._add(field, lines)
        return None

    def _here(self, source: str, field: str) -> str | None:
        """The source as it can be read without a network, or None. A file that must be here and is not is a problem."""
        parsed = Source.parse(source)
        try:
            here = parsed.here()
        except DataError:
            # No name of a data set; who resolves the names of a spec says so.
            return None
        if here is None and parsed.of_hub:
            self.unread.append(Problem(field, f"{source} is not in the hub's cache of this machine"))
        elif here is None:
            self._missing(field, parsed.place)
        return None if here is None else str(here)

    def _missing(self, field: str, file: str) -> None:
        if self._absent_files:
            self.unread.append(Problem(field, f"{file} is not on this machine"))
        else:
            self._add(field, [f"no such file: {file}"])

    def _add(self, field: str, lines: Iterable[str]) -> None:
        self.problems += (Problem(field, line) for line in lines)


def _shared(train: Iterable[TaskPrompt], held_out: Iterable[TaskPrompt]) -> list[Problem]:
    trained = {prompt.key for prompt in train}
    shared = [prompt for prompt in held_out if prompt.key in trained]
    if not shared:
        return []
    text = (
        f"{len(shared)} of its prompts are also in prompts.train, for example {beginning(shared[0].text)!r}: remove "
        "them from one of the two"
    )
    return [Problem("prompts.held_out", text, ("prompts.train",))]


def _preferences(source: str, bad: BadRows) -> Iterator[Pair]:
    """Pairs of which one answer is preferred."""
    for pair in pairs(source, bad, labelled=False):
        if pair.label is not None and side(pair.label) and pair.answer_a != pair.answer_b:
            yield pair


def _one_kind_of_thumbs(spec: run_pb2.RunSpec, rated: Mapping[str, Sequence[Thumb]]) -> list[Problem]:
    """Where all thumbs that there are were read, and say the same."""
    whole = len(rated) == len(spec.kto.data) and all(0 < len(found) < _ROWS_LOOKED_AT for found in rated.values())
    said = {thumb.good for found in rated.values() for thumb in found}
    if len(said) != 1 or not whole or spec.kto.HasField("stored"):
        return []
    verdict, other = ("up", "down") if said == {True} else ("down", "up")
    text = f"holds thumbs {verdict} only, and KTO learns from good and from bad answers: add some thumbs {other}"
    return [Problem("kto.data", text)]

"""The pairs of a study: which are taken of files, how they are kept, and what is wrong with what a spec says of them.

They are comparisons in our own layout, whose id is ``charter.storage.comparisons.content_id``; those of files have the
files' labels, sampled ones have none.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest

from charter.data.errors import DataError
from charter.data.pairs.read import PairDefaults, comparisons
from charter.data.prompts import read_prompts
from charter.data.sources import Source
from charter.hashing import stable_fraction
from charter.held_out import prompt_key
from charter.listed import listed
from charter.rpc.messages import chat_messages
from charter.spec.bad_rows import bad_rows_of
from charter.spec.problems import Problem
from charter.state_files import read_log
from charter.storage.comparison_files import write_comparisons
from charter.storage.comparisons import LABELLED, comparison_from_row, content_id
from charter.study.folder import StudyFolder
from charter.study.spec import IMPORTED, StudySpec, labellers
from charter.v1 import run_pb2, types_pb2

# Why a pair is left out that there is.
EVALUATED, IDENTICAL, REPEATED = "of an evaluated prompt", "with identical answers", "repeated"
UNLABELLED = "without a label"
_ADVICE = "Bring it back from a copy, or begin another study"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Pairs that everybody labels, and what was left out of those that there are, by why."""

    pairs: list[types_pb2.Comparison]
    left_out: dict[str, int]


def choose_pairs(spec: StudySpec, base: run_pb2.RunSpec, evaluated: Collection[str]) -> Chosen:
    """The pairs of ``pairs.sources``, in an order that the seed draws, as many of each dimension as can be first.

    A smaller ``count`` takes the beginning of what a larger one takes. ``evaluated`` as of ``evaluated_prompts``.
    Raises ``DataError``.
    """
    bad, wanted = bad_rows_of(base), IMPORTED in labellers(spec)
    found: list[types_pb2.Comparison] = []
    for source in spec.pairs.sources:
        defaults = PairDefaults(Source.parse(source).name, spec.pairs.dimension, base.comparisons.held_out_fraction)
        found += (one for _, one in comparisons(source, defaults, bad, labelled=wanted))
    for one in found:
        one.id = content_id(one)
        one.dimension = one.dimension or spec.pairs.dimension
        one.ClearField("create_time")
    usable = usable_pairs(found, evaluated, labelled=wanted, failed=bad.counts.elements())
    by_dimension: dict[str, list[types_pb2.Comparison]] = {}
    for one in sorted(usable.pairs, key=lambda one: stable_fraction("pair of a study", str(spec.seed), one.id)):
        by_dimension.setdefault(one.dimension, []).append(one)
    turns = zip_longest(*(by_dimension[name] for name in sorted(by_dimension)))
    drawn = [one for one in chain.from_iterable(turns) if one is not None]
    return Chosen(drawn[: spec.pairs.count if spec.pairs.HasField("count") else None], usable.left_out)


def usable_pairs(
    found: Iterable[types_pb2.Comparison], evaluated: Collection[str], *, labelled: bool, failed: Iterable[str] = ()
) -> Chosen:
    """Those that can be compared, each once; ``failed`` says why others were not even made."""
    left_out = Counter(failed)
    usable: dict[str, types_pb2.Comparison] = {}
    for one in found:
        if one.answer_a.text == one.answer_b.text:
            left_out[IDENTICAL] += 1
        elif prompt_key(chat_messages(one.prompt)) in evaluated:
            left_out[EVALUATED] += 1
        elif labelled and one.outcome not in LABELLED:
            left_out[UNLABELLED] += 1
        elif one.id in usable:
            left_out[REPEATED] += 1
        else:
            usable[one.id] = one
    return Chosen(list(usable.values()), dict(left_out))


def evaluated_prompts(spec: StudySpec, base: run_pb2.RunSpec) -> set[str]:
    """Keys of the prompts that something is measured on: those of the runs, and of the study. Raises ``DataError``."""
    sources = _evaluated_sources(spec, base)
    return {prompt.key for source in sources for prompt in read_prompts(source, bad_rows_of(base))}


def _evaluated_sources(spec: StudySpec, base: run_pb2.RunSpec) -> list[str]:
    return [*base.prompts.held_out, *(one.source for one in spec.evaluation.prompts)]


def read_pairs(folder: StudyFolder) -> list[types_pb2.Comparison]:
    """Those that were written, in their order, sampled ones that failed too; none before."""
    return read_log(folder.pairs, lambda line: comparison_from_row(json.loads(line)), _ADVICE)


def stored_pairs(spec: StudySpec, folder: StudyFolder) -> list[types_pb2.Comparison]:
    """Of those that were written the ones that are labelled, as ``choose_pairs`` and the sampling give them."""
    written = read_pairs(folder)
    if not spec.pairs.sources:
        written = [one for one in written[: spec.pairs.sampled] if one.outcome != types_pb2.OUTCOME_INVALID]
    return usable_pairs(written, (), labelled=False).pairs


def write_pairs(folder: StudyFolder, pairs: Iterable[types_pb2.Comparison]) -> None:
    """Write ``pairs.jsonl``."""
    write_comparisons(folder.pairs, pairs)


def pair_findings(spec: StudySpec, base: run_pb2.RunSpec) -> tuple[list[Problem], list[Problem]]:
    """What is wrong with the pairs of a filled spec, offline; and of which sources nothing is known here."""
    if not spec.HasField("pairs"):
        return [], []
    problems = list(_rules(spec))
    unread = [
        Problem(f"pairs.sources[{index}]", f"{source} is not in the hub's cache of this machine")
        for index, source in enumerate(spec.pairs.sources)
        if not _is_here(source)
    ]
    if not problems and not unread:
        problems += _of_contents(spec, base)
    return problems, unread


def _of_contents(spec: StudySpec, base: run_pb2.RunSpec) -> Iterator[Problem]:
    # What is wrong with prompts is said where they are named.
    if not all(map(_is_here, [*_evaluated_sources(spec, base), *base.prompts.train])):
        return
    try:
        evaluated = evaluated_prompts(spec, base)
        train = [one for source in base.prompts.train for one in read_prompts(source, bad_rows_of(base))]
    except (DataError, OSError):
        return
    if not spec.pairs.sources:
        yield from _uncovered(spec, {one.dimension for one in train})
        return
    try:
        chosen = choose_pairs(spec, base, evaluated)
    except (DataError, OSError) as error:
        yield from (Problem("pairs.sources", line) for line in str(error).splitlines())
        return
    yield from _counts(spec, chosen)
    yield from _uncovered(spec, {one.dimension for one in chosen.pairs})


def _is_here(source: str) -> bool:
    """Whether it can be looked into without a network; a name that is none can: that is said of it."""
    parsed = Source.parse(source)
    try:
        return not parsed.of_hub or parsed.here() is not None
    except DataError:
        return True


def _rules(spec: StudySpec) -> Iterator[Problem]:
    pairs = spec.pairs
    if bool(pairs.sources) == pairs.HasField("sampled"):
        both = "has sources and sampled: leave one out" if pairs.sources else "needs sources, or how many are sampled"
        yield Problem("pairs", both)
    if pairs.HasField("sampled"):
        for name, given in (("count", pairs.HasField("count")), ("dimension", bool(pairs.dimension))):
            if given:
                yield Problem(f"pairs.{name}", "is about sources, and these pairs are sampled: leave it out")
    for index, source in enumerate(pairs.sources):
        if source in pairs.sources[:index]:
            yield Problem(f"pairs.sources[{index}]", f"is named twice: {source}")


def _counts(spec: StudySpec, chosen: Chosen) -> Iterator[Problem]:
    there = len(chosen.pairs)
    others = ", ".join(f"{count} {why}" for why, count in chosen.left_out.items())
    left_out = f" (left out: {others})" if others else ""
    if spec.pairs.count > there:
        text = f"is {spec.pairs.count}, and the sources hold {there} that can be compared{left_out}: lower it"
        yield Problem("pairs.count", text, ("pairs.sources",))
    elif len({prompt_key(chat_messages(one.prompt)) for one in chosen.pairs}) < 2:
        text = f"hold {there} pairs that can be compared{left_out}, and a fit needs pairs of two prompts at least"
        yield Problem("pairs.sources", text)


def _uncovered(spec: StudySpec, dimensions: set[str]) -> Iterator[Problem]:
    """Dimensions of pairs that ``labels_by_dimension`` leaves to nobody, and those that no pair has."""
    has = listed(sorted(dimensions - {""})) if dimensions - {""} else "none"
    for index, arm in enumerate(spec.arms):
        field = f"arms[{index}].labels_by_dimension"
        if not arm.labels_by_dimension:
            continue
        for name in sorted(arm.labels_by_dimension.keys() - dimensions):
            yield Problem(f"{field}.{name}", f"no pair is of this dimension; they have {has}", ("pairs",))
        if missing := sorted(dimensions - arm.labels_by_dimension.keys()):
            named = listed([name or "no dimension" for name in missing])
            text = f"says nothing of pairs of {named}: name whose labels these are, for all arms learn from all pairs"
            yield Problem(field, text, ("pairs",))

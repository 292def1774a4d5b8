"""Token sequences that begin alike as one tree, so that what they share is computed once.

The tokens of a tree lie one behind the other in one row, without padding. Each sees itself and its ancestors only, at
the position of its depth: what it would see in a row of its own (tree attention, as in Miao et al. 2023, "SpecInfer",
arXiv 2305.09781, section 4.2).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Sequences that share fewer tokens than this are strangers: a segment of its own would cost more than computing twice.
_LEAST_SHARED = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tokens to run, of which those from place ``first`` on are asked for; ``index`` is the place in the call."""

    index: int
    ids: Sequence[int]
    first: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens ``start`` to ``stop`` of a row. Each sees those of ``before``, then its own segment up to itself."""

    start: int
    stop: int
    before: "tuple[Segment, ...]"


@dataclass(slots=True)
class Tree:
    """Sequences as one row of tokens.

    ``ids`` and ``depths`` (the position of each token in its sequence) have an entry for each token, which is in
    exactly one of ``segments``. ``places`` gives for each sequence, by its index, where in the row the tokens that are
    asked for are, in order.
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    places: dict[int, list[int]] = field(default_factory=dict)


def trees_of(sequences: Sequence[Wanted], most_tokens: int, most_asked: int) -> Iterator[Tree]:
    """Put sequences into trees; each is in exactly one. Neighbours in lexicographic order share a tree.

    A tree has at most ``most_tokens`` tokens, of which at most ``most_asked`` are asked for, or holds one sequence.
    """
    group: list[Wanted] = []
    tokens = asked = 0
    for one in sorted(sequences, key=lambda one: tuple(one.ids)):
        new = len(one.ids) - (_counted(_shared(group[-1].ids, one.ids)) if group else 0)
        wanted = len(one.ids) - one.first
        if group and (tokens + new > most_tokens or asked + wanted > most_asked):
            yield _tree(group)
            group, tokens, asked, new = [], 0, 0, len(one.ids)
        group.append(one)
        tokens, asked = tokens + new, asked + wanted
    if group:
        yield _tree(group)


def whole_tree(sequences: Sequence[Wanted]) -> Tree:
    """One tree of all sequences."""
    return _tree(sorted(sequences, key=lambda one: tuple(one.ids)))


def side_by_side(sequences: Sequence[Wanted]) -> Tree:
    """The sequences in one row with nothing shared."""
    tree = Tree()
    for one in sequences:
        start = len(tree.ids)
        _add(tree, one.ids, 0, ())
        tree.places[one.index] = list(range(start + one.first, len(tree.ids)))
    return tree


def tree_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of the tree of all of these."""
    ordered = sorted(map(tuple, sequences))
    shared = sum(_counted(_shared(one, other)) for one, other in itertools.pairwise(ordered))
    return sum(map(len, ordered)) - shared


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    shorter = min(len(one), len(other))
    if tuple(one[:shorter]) == tuple(other[:shorter]):
        return shorter
    return next(place for place in range(shorter) if one[place] != other[place])


def _counted(shared: int) -> int:
    return shared if shared >= _LEAST_SHARED else 0


def _tree(group: Sequence[Wanted]) -> Tree:
    """The tree of sequences in lexicographic order."""
    tree = Tree()
    _grow(tree, group, 0, ())
    return tree


def _grow(tree: Tree, group: Sequence[Wanted], depth: int, before: tuple[Segment, ...]) -> None:
    """Add what comes behind the first ``depth`` tokens, which all of the group share and ``before`` holds."""
    # The first and the last in lexicographic order share what all share.
    common = _shared(group[0].ids, group[-1].ids)
    if len(group) == 1 or _counted(common):
        before, depth = _add(tree, group[0].ids[:common], depth, before), common
    if len(group) == 1:
        nodes = [node for segment in before for node in range(segment.start, segment.stop)]
        tree.places[group[0].index] = nodes[group[0].first :]
        return
    start = 0
    for stop in range(1, len(group) + 1):
        if stop == len(group) or _counted(_shared(group[start].ids, group[stop].ids)) <= depth:
            _grow(tree, group[start:stop], depth, before)
            start = stop


def _add(tree: Tree, ids: Sequence[int], depth: int, before: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Add the ids from ``depth`` on as a segment, if there are any."""
    if len(ids) == depth:
        return before
    start = len(tree.ids)
    segment = Segment(start, start + len(ids) - depth, before)
    tree.ids += ids[depth:]
    tree.depths += range(depth, len(ids))
    tree.segments.append(segment)
    return (*before, segment)

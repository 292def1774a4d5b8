"""Token sequences that begin alike as one tree, so that what they share is computed once.

All tokens of a tree go through the model as one row. Each sees itself and its ancestors only, at the position of its
depth: what it would see in a row of its own (tree attention, as in Miao et al. 2023, "SpecInfer", arXiv 2305.09781,
section 4.2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A sequence joins the tree of its neighbour when it shares at least this part of its tokens with it; a tree grows to
# this many tokens. Attention over a tree is quadratic in its tokens, and most of it is masked.
_LEAST_SHARED = 0.2
_MOST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tokens to run, whose logits from place ``first`` on are asked for; ``index`` is the place in the call."""

    index: int
    ids: Sequence[int]
    first: int


@dataclass(frozen=True, slots=True)
class Tree:
    """Sequences as a tree of tokens. The tokens whose logits are asked for come last.

    ``ids`` and ``depths`` are int64 [tokens]; ``visible`` is bool [tokens, tokens], true where the row's token sees the
    column's. The logits of the last ``asked`` tokens are asked for; ``places`` gives for each sequence, by
    its index, which of these are its own, in order.
    """

    ids: NDArray[np.int64]
    depths: NDArray[np.int64]
    visible: NDArray[np.bool_]
    asked: int
    places: dict[int, list[int]]


def trees_of(sequences: Sequence[Wanted]) -> Iterator[Tree]:
    """Group sequences into trees; each is in exactly one."""
    group: list[tuple[Wanted, int]] = []  # With the number of tokens shared with the sequence before.
    tokens = 0
    for sequence in sorted(sequences, key=lambda one: tuple(one.ids)):
        shared = _shared(group[-1][0].ids, sequence.ids) if group else 0
        new = len(sequence.ids) - shared
        if group and (shared < _LEAST_SHARED * len(sequence.ids) or tokens + new > _MOST_TOKENS):
            yield _tree(group)
            group, tokens, shared, new = [], 0, 0, len(sequence.ids)
        group.append((sequence, shared))
        tokens += new
    if group:
        yield _tree(group)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _tree(group: Sequence[tuple[Wanted, int]]) -> Tree:
    """The tree of sequences in lexicographic order, in which each shares most with the one before it."""
    ids: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    paths: dict[int, list[int]] = {}
    path: list[int] = []
    for sequence, shared in group:
        path = path[:shared]
        for depth in range(shared, len(sequence.ids)):
            parents.append(path[-1] if path else -1)
            path.append(len(ids))
            ids.append(sequence.ids[depth])
            depths.append(depth)
        paths[sequence.index] = path[sequence.first :]
    visible = np.eye(len(ids), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
    asked = np.zeros(len(ids), dtype=np.bool_)
    asked[[node for nodes in paths.values() for node in nodes]] = True
    order = np.argsort(asked, kind="stable")
    place = np.empty(len(ids), dtype=np.int64)
    place[order] = np.arange(len(ids))
    before = len(ids) - int(asked.sum())
    return Tree(
        ids=np.asarray(ids, dtype=np.int64)[order],
        depths=np.asarray(depths, dtype=np.int64)[order],
        visible=visible[np.ix_(order, order)],
        asked=int(asked.sum()),
        places={index: [int(place[node]) - before for node in nodes] for index, nodes in paths.items()},
    )

"""Bradley-Terry ratings of any number of models (Bradley and Terry 1952): ``logit P(i beats j) = r_i - r_j``.

Ratings are in points of Elo's scale, ``400 / ln 10`` a nat: 100 points ahead are a win rate of 64 %, 200 are 76 %.
The start model has 0, so that a rating is a difference to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit

from charter.evaluation.figures.rows import Judgement, judged
from charter.evaluation.statistics import (
    Array,
    Estimate,
    NotIdentifiedError,
    damped,
    interval_of,
    numbered,
    prior_weights,
    prompt_weights,
)

# Elo points of one nat of log-odds.
ELO = 400 / np.log(10)
# Most steps of Newton's method.
_MOST_STEPS = 100


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings of the models in ``names`` by one judge in one dimension, in Elo points; the first is the start, at 0."""

    names: tuple[str, ...]
    values: Array
    # What the ratings may be too, jointly [draws, models].
    draws: Array
    prompts: int
    failures: int

    def rating(self, model: str) -> Estimate:
        """The model's rating: its distance from the start model."""
        return self.difference(model, self.names[0])

    def difference(self, model: str, against: str) -> Estimate:
        """How far a model is ahead of another."""
        i, j = self.names.index(model), self.names.index(against)
        value = float(self.values[i] - self.values[j])
        return Estimate(value, *interval_of(self.draws[:, i] - self.draws[:, j], value), self.prompts)

    def best(self) -> dict[str, float]:
        """The probability that each model has the highest rating of all: the share of draws in which it has."""
        highest = np.bincount(self.draws.argmax(axis=1), minlength=len(self.names)) / len(self.draws)
        return dict(zip(self.names, highest.tolist(), strict=True))


def ratings(judgements: Sequence[Judgement], start: str, *, samples: int, seed: int) -> Ratings:
    """Ratings by the soft labels of one judge in one dimension; a tie is half a win.

    For every two models that were compared, half a prompt won and half a prompt lost are added: 100 % wins have a
    finite rating, and of two models it is that of Jeffreys' prior (Firth 1993). The draws weigh the prompts, each with
    all that was judged on it (``statistics.prompt_weights``).

    Raises:
        NotIdentifiedError: nothing was judged, the start model was not, or models fall into groups that were never
            compared with each other.
    """
    rows = judged(judgements)
    others = sorted({name for one, _ in rows for name in (one.model_a, one.model_b)} - {start})
    names = (start, *others)
    if not any(start in (one.model_a, one.model_b) for one, _ in rows):
        raise NotIdentifiedError(f"no ratings: no judgement of {start}, from which the others are measured, is there")
    place = {name: i for i, name in enumerate(names)}
    if alone := next((one for one, _ in rows if one.model_a == one.model_b), None):
        raise ValueError(f"{alone.model_a} was compared with itself")
    # Those that were compared, the model that comes first in ``names`` first.
    pairs = sorted({tuple(sorted((place[one.model_a], place[one.model_b]))) for one, _ in rows})
    _check_connected(names, pairs)
    of_pair = {pair: i for i, pair in enumerate(pairs)}
    prompts, count = numbered([one.prompt for one, _ in rows])
    # Won by the first model of the pair, and judged at all [prompts, pairs].
    won, seen = np.zeros((count, len(pairs))), np.zeros((count, len(pairs)))
    for prompt, (one, probability) in zip(prompts, rows, strict=True):
        a, b = place[one.model_a], place[one.model_b]
        pair = of_pair[min(a, b), max(a, b)]
        won[prompt, pair] += probability if a < b else 1.0 - probability
        seen[prompt, pair] += 1.0
    # Judgements of a prompt on which a pair was compared: half a prompt has half as many.
    size = seen.sum(axis=0) / (seen > 0).sum(axis=0)
    first, second = np.array(pairs).T
    half = 0.5 * size[None]
    values = _fit(won.sum(axis=0)[None] + half, seen.sum(axis=0)[None] + 2 * half, first, second, len(names))
    sums = np.concatenate([weights @ np.hstack([won, seen]) for weights in prompt_weights(count, samples, seed)])
    unseen = prior_weights(2 * len(pairs), samples, seed) * np.tile(size, 2)
    lost, gained = np.hsplit(unseen, 2)
    draws = _fit(sums[:, : len(pairs)] + gained, sums[:, len(pairs) :] + gained + lost, first, second, len(names))
    return Ratings(names, values[0] * ELO, draws * ELO, count, len(judgements) - len(rows))


def _check_connected(names: Sequence[str], pairs: Sequence[tuple[int, ...]]) -> None:
    edges = np.array(pairs).T
    graph = coo_array((np.ones(len(pairs)), (edges[0], edges[1])), shape=(len(names), len(names)))
    groups, group_of = connected_components(graph, directed=False)
    if groups > 1:
        named = list(zip(names, group_of, strict=True))
        apart = "; ".join(", ".join(name for name, own in named if own == group) for group in range(groups))
        raise NotIdentifiedError(
            f"no ratings: models of different groups were never compared, not even by way of others: {apart}. "
            "Have a model of each group judged against one of another"
        )


def _fit(won: Array, seen: Array, first: np.ndarray, second: np.ndarray, models: int) -> Array:
    """Ratings in nats [draws, models], the first 0, of wins of the first of each pair [draws, pairs] among ``seen``.

    Newton's method on the concave log-likelihood of all draws at once. Pairs that make a tree, such as those of each
    model with the start, leave nothing to weigh up: each difference is the log-odds of its own wins.
    """
    draws = len(won)
    found = np.zeros((draws, models))
    # +1 for the first model of a pair, -1 for the second [pairs, models].
    design = np.zeros((won.shape[1], models))
    design[np.arange(len(first)), first], design[np.arange(len(second)), second] = 1.0, -1.0
    design = design[:, 1:]
    if len(first) == models - 1:
        # A float holds no 1 - 1e-17.
        found[:, 1:] = np.linalg.solve(design, logit(np.clip(won / seen, 1e-15, 1 - 1e-15)).T).T
        return found
    for _ in range(_MOST_STEPS):
        p = expit(found[:, first] - found[:, second])
        gradient = (won - seen * p) @ design
        hessian = np.einsum("dp,pi,pj->dij", seen * p * (1.0 - p), design, design, optimize=True)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        found[:, 1:] += damped(step, np.sqrt(2.0))
        if np.abs(step).max() < 1e-8:
            return found
    raise ArithmeticError(f"the fit of the ratings found no end in {_MOST_STEPS} steps")

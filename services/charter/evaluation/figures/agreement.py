"""How far two labellers agree beyond chance."""

from collections.abc import Hashable, Sequence

import numpy as np

from charter.evaluation.statistics import (
    Array,
    Estimate,
    NotIdentifiedError,
    interval_of,
    numbered,
    prior_weights,
    prompt_weights,
)


def cohen_kappa(labels: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Agreement of two labellers beyond chance (Cohen 1960): ``(p_o - p_e) / (1 - p_e)``.

    ``p_o`` is the share of items on which they agree; ``p_e`` the share on which they would if each labelled at random
    with the frequencies that are their own.

    Args:
        labels: what the first and what the second said of each item, [items], at least one.

    Returns:
        1 for full agreement, 0 for chance; None where both always say the same one thing: chance alone explains that.
    """
    codes, kinds = numbered([label for pair in labels for label in pair])
    if kinds == 1:
        return None
    table = np.zeros((1, kinds, kinds))
    np.add.at(table[0], (codes[::2], codes[1::2]), 1.0)
    return float(_kappa(table)[0])


def kappa_estimate(
    labels: Sequence[tuple[Hashable, Hashable]], prompts: Sequence[Hashable], *, samples: int, seed: int
) -> Estimate:
    """Cohen's kappa with its interval, whose unit is the prompt.

    Half an item is spread evenly over what two labellers can say of an item, so that full agreement has an interval of
    some width.

    Args:
        labels: as in ``cohen_kappa``.
        prompts: of each item.
        samples: bootstrap draws.
        seed: of the draws.

    Raises:
        NotIdentifiedError: both always say the same one thing.
        ValueError: lengths differ.
    """
    if len(labels) != len(prompts):
        raise ValueError(f"{len(labels)} labels but {len(prompts)} prompts")
    value = cohen_kappa(labels) if labels else None
    if value is None:
        raise NotIdentifiedError("no kappa: both labellers always say the same, which chance alone explains")
    codes, kinds = numbered([label for pair in labels for label in pair])
    places, count = numbered(prompts)
    tables = np.zeros((count, kinds * kinds))
    np.add.at(tables, (places, codes[::2] * kinds + codes[1::2]), 1.0)
    sums = np.concatenate([weights @ tables for weights in prompt_weights(count, samples, seed)])
    sums += prior_weights(kinds * kinds, samples, seed) * (len(labels) / count / kinds**2)
    draws = _kappa(sums.reshape(-1, kinds, kinds))
    return Estimate(value, *interval_of(draws, value), count)


def _kappa(tables: Array) -> Array:
    """Of tables of counts [tables, labels of the first, labels of the second]."""
    items = tables.sum(axis=(1, 2))
    observed = np.trace(tables, axis1=1, axis2=2) / items
    expected = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1) / items**2
    return np.asarray((observed - expected) / (1.0 - expected))

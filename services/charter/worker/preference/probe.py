"""A linear probe: the head of a preference model fitted alone, before everything is.

A random head disturbs the backbone that is fitted with it (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution": probe first, then fine-tune), and its random scores outlast a fit to a
few hundred labels. The probe is convex, and its penalty is chosen on labels that it has not seen: where nothing can be
predicted, its scores are close to 0.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

# Ridge penalties, as multiples of the mean squared length of the differences.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS = 5


def fit_probe(
    differences: Array,
    probabilities: Array,
    groups: Sequence[str],
    weights: Array | None = None,
    known: Array | None = None,
) -> Array:
    """Weights w that make ``sigmoid(x w + known)`` fit soft labels, by the ridge penalty that cross-validates best.

    Args:
        differences: features of answer A minus those of B, [pairs, width].
        probabilities: soft labels P(A is better), [pairs].
        groups: what each pair shares with others, such as its prompt, [pairs]; folds never part a group.
        weights: how much each pair counts, [pairs], at least 0; None = alike.
        known: log-odds of A that something else explains, [pairs]; None = 0.

    Returns:
        Weights, [width]. With fewer than two groups, those of the strongest penalty.
    """
    names = sorted(set(groups))
    folds = min(_FOLDS, len(names))
    fold_of = {name: index % folds for index, name in enumerate(names)}
    fold = np.array([fold_of[group] for group in groups])
    counted = np.ones(len(fold)) if weights is None else weights
    explained = np.zeros(len(fold)) if known is None else known
    if folds < 2:
        return _solve(differences, probabilities, _PENALTIES[-1], counted, explained)

    def held_out_loss(penalty: float) -> float:
        """Mean cross-entropy of each pair under the weights fitted without its fold."""
        logits = np.empty(len(fold))
        for index in range(folds):
            others = fold != index
            found = _solve(differences[others], probabilities[others], penalty, counted[others], explained[others])
            logits[~others] = differences[~others] @ found + explained[~others]
        return _cross_entropy(logits, probabilities, counted)

    return _solve(differences, probabilities, min(_PENALTIES, key=held_out_loss), counted, explained)


def _solve(differences: Array, probabilities: Array, penalty: float, counted: Array, known: Array) -> Array:
    """Minimise the cross-entropy plus ``penalty * mean |x|^2 * |w|^2 / 2``; both means are weighted by ``counted``."""
    if not counted.any():
        return np.zeros(differences.shape[1])
    share = counted / counted.sum()
    scale = penalty * float(share @ np.sum(differences**2, axis=1))

    def objective(weights: Array) -> tuple[float, Array]:
        logits = differences @ weights + known
        residual = 1 / (1 + np.exp(-logits)) - probabilities
        gradient = differences.T @ (share * residual) + scale * weights
        return _cross_entropy(logits, probabilities, counted) + 0.5 * scale * float(weights @ weights), gradient

    found = minimize(objective, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x, dtype=np.float64)


def _cross_entropy(logits: Array, probabilities: Array, counted: Array) -> float:
    losses = probabilities * np.logaddexp(0.0, -logits) + (1.0 - probabilities) * np.logaddexp(0.0, logits)
    return float(np.average(losses, weights=counted)) if counted.any() else 0.0

"""The linear probe: a known direction, noise, and the condition of the minimum."""

import numpy as np
import pytest
from charter.worker.preference import probe
from numpy.typing import NDArray

WIDTH = 30


def draw(pairs: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Differences with unequal scales, and a direction whose log-odds have standard deviation 2."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(size=(pairs, WIDTH)) * np.linspace(0.2, 3, WIDTH)
    direction = rng.normal(size=WIDTH)
    return differences, 2 * direction / (differences @ direction).std()


def solved(
    differences: NDArray[np.float64], labels: NDArray[np.float64], penalty: float, known: float = 0.0
) -> NDArray[np.float64]:
    """All pairs alike; ``known`` is the size of what is known of them, its sign that of the first feature."""
    return probe._solve(differences, labels, penalty, np.ones(len(labels)), known * np.sign(differences[:, 0]))


def names(count: int) -> list[str]:
    return [f"prompt {index}" for index in range(count)]


def test_a_known_direction_is_found() -> None:
    differences, direction = draw(400, seed=0)
    labels = 1 / (1 + np.exp(-differences @ direction))
    weights = probe.fit_probe(differences, labels, names(400))
    assert np.corrcoef(differences @ weights, differences @ direction)[0, 1] > 0.99


def test_where_nothing_can_be_predicted_scores_stay_small() -> None:
    """Labels that have nothing to do with the features: an unpenalised fit would be sure, and wrong."""
    differences, _ = draw(60, seed=1)
    labels = np.random.default_rng(2).choice([0.1, 0.9], size=60)
    weights = probe.fit_probe(differences, labels, names(60))
    sure = solved(differences, labels, 1e-3)
    assert (differences @ weights).std() < 0.2 * (differences @ sure).std()


@pytest.mark.parametrize("known", [0.0, 3.0])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_the_solution_is_the_minimum(penalty: float, known: float) -> None:
    """At the minimum the gradient, taken here by finite differences of the written-out loss, vanishes."""
    differences, direction = draw(50, seed=3)
    labels = 1 / (1 + np.exp(-differences @ direction))
    weights = solved(differences, labels, penalty, known)
    scale = penalty * (differences**2).sum(axis=1).mean()

    def loss(at: NDArray[np.float64]) -> float:
        p = 1 / (1 + np.exp(-differences @ at - known * np.sign(differences[:, 0])))
        return float(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean() + scale * (at @ at) / 2)

    step = 1e-5
    gradient = [(loss(weights + step * unit) - loss(weights - step * unit)) / (2 * step) for unit in np.eye(WIDTH)]
    assert np.abs(gradient).max() < 1e-3


def test_pairs_of_one_prompt_are_never_on_both_sides() -> None:
    """Copies of a pair under one name are no evidence: with them in one group the penalty stays strong."""
    differences, _ = draw(12, seed=4)
    labels = np.random.default_rng(5).choice([0.05, 0.95], size=12)
    copied, copied_labels = np.repeat(differences, 10, axis=0), np.repeat(labels, 10)
    together = probe.fit_probe(copied, copied_labels, [name for name in names(12) for _ in range(10)])
    apart = probe.fit_probe(copied, copied_labels, names(120))
    assert (copied @ together).std() < 0.5 * (copied @ apart).std()


def test_one_prompt_alone_gives_a_cautious_head() -> None:
    differences, direction = draw(8, seed=6)
    weights = probe.fit_probe(differences, 1 / (1 + np.exp(-differences @ direction)), ["one"] * 8)
    assert (differences @ weights).std() < 0.2

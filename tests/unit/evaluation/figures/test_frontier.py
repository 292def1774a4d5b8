"""Arms on two axes: ellipses against the draws and a closed form, dominance and the front against plain loops."""

import numpy as np
import pytest
from charter.evaluation.figures.frontier import Frontier, frontier
from charter.evaluation.figures.ratings import Ratings
from charter.evaluation.statistics import Array
from scipy import stats


def made(values: dict[str, tuple[float, float]], noise: float = 10.0, samples: int = 4000) -> tuple[Ratings, Ratings]:
    """Ratings of models on two axes, each with noise of its own in its draws."""
    names = ("start", *values)
    places = np.array([(0.0, 0.0), *values.values()])
    draws = places + noise * np.random.default_rng(0).standard_normal((samples, len(names), 2))
    draws[:, 0] = 0.0
    one, other = (Ratings(names, places[:, axis], draws[:, :, axis], 100 + axis, 0) for axis in range(2))
    return one, other


def of_one_seed(values: dict[str, tuple[float, float]], noise: float = 10.0) -> Frontier:
    return frontier(*made(values, noise), {name: [name] for name in values}, seed=0)


def test_an_arm_stands_at_the_mean_of_its_seeds() -> None:
    axes = made({"a1": (10.0, 50.0), "a2": (30.0, 10.0), "b1": (-5.0, 0.0)})
    found = frontier(*axes, {"a": ["a1", "a2"], "b": ["b1"]}, seed=0)
    across, up = found.rating("a", 0), found.rating("a", 1)
    assert (across.value, up.value) == (20.0, 30.0)
    assert (across.prompts, up.prompts) == (100, 101)
    assert across.low < 20 < across.high
    start = found.rating("start", 1)
    assert (start.value, start.low, start.high) == (0.0, 0.0, 0.0)


def test_an_ellipse_of_prompts_alone_is_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    covariance = np.array([[400.0, -250.0], [-250.0, 300.0]])
    draws = rng.multivariate_normal([50.0, 20.0], covariance, 100_000)
    axes = [
        Ratings(
            ("start", "a"), np.array([0.0, draws[:, axis].mean()]), np.pad(draws[:, [axis]], [(0, 0), (1, 0)]), 9, 0
        )
        for axis in range(2)
    ]
    ellipse = frontier(axes[0], axes[1], {"a": ["a"]}, seed=0).ellipse("a")
    assert ellipse is not None
    lengths, directions = np.linalg.eigh(covariance)
    radius = np.sqrt(stats.chi2(2).ppf(0.95))
    assert (ellipse.shorter, ellipse.longer) == pytest.approx(radius * np.sqrt(lengths), rel=0.02)
    assert np.tan(ellipse.angle) == pytest.approx(directions[1, 1] / directions[0, 1], rel=0.05)
    # Its outline is where a Normal's density has fallen as far.
    apart = ellipse.outline() - [50.0, 20.0]
    assert np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart) == pytest.approx(
        np.full(72, radius**2), rel=0.06
    )


def test_dominance_is_better_on_both_axes_in_one_draw() -> None:
    found = of_one_seed({"a": (10.0, 10.0), "b": (0.0, 0.0)})
    # Each axis has its own noise: two Normal differences of mean 10 and deviation 10 root 2.
    ahead = stats.norm.cdf(10 / (10 * np.sqrt(2)))
    assert found.dominates("a", "b") == pytest.approx(ahead**2, abs=0.03)
    assert found.dominates("b", "a") == pytest.approx((1 - ahead) ** 2, abs=0.03)
    assert found.dominates("a", "start") == pytest.approx(stats.norm.cdf(1.0) ** 2, abs=0.03)
    assert found.dominates("a", "a") == 0.0


@pytest.mark.parametrize(
    ("values", "front"),
    [
        ({"a": (10.0, 50.0), "b": (50.0, 10.0), "c": (5.0, 40.0)}, ("a", "b")),
        ({"a": (-10.0, -5.0)}, ("start",)),
        ({"a": (10.0, -5.0)}, ("a", "start")),
        # Equal on one axis and worse on the other is worse; equal on both is not.
        ({"a": (10.0, 10.0), "b": (10.0, 5.0), "c": (10.0, 10.0)}, ("a", "c")),
    ],
)
def test_the_front_has_whom_no_other_beats(values: dict[str, tuple[float, float]], front: tuple[str, ...]) -> None:
    assert of_one_seed(values).front() == front


def test_the_probability_of_being_on_the_front_is_counted_in_draws() -> None:
    found = of_one_seed({"a": (10.0, 12.0), "b": (14.0, 8.0), "c": (0.0, 2.0)})

    def beaten(draw: Array, arm: int) -> bool:
        return any((draw[other] > draw[arm]).all() for other in range(4) if other != arm)

    counted = [np.mean([not beaten(draw, arm) for draw in found.seeds.draws]) for arm in range(4)]
    assert found.on_front() == pytest.approx(dict(zip(("a", "b", "c", "start"), counted, strict=True)))


def test_an_ellipse_of_seeds_alone_is_hotellings() -> None:
    places = {"a1": (10.0, 50.0), "a2": (30.0, 10.0), "a3": (25.0, 40.0), "b1": (0.0, 5.0), "b2": (8.0, 1.0)}
    arms = {"a": ["a1", "a2", "a3"], "b": ["b1", "b2"]}
    ellipse = frontier(*made(places, noise=0.0), arms, seed=0).ellipse("a")
    assert ellipse is not None
    scatter = [
        np.cov([places[model] for model in models], rowvar=False) * (len(models) - 1) for models in arms.values()
    ]
    lengths = np.linalg.eigvalsh(sum(scatter) / 3 / 3)
    # Three degrees of freedom in a plane.
    radius = np.sqrt(2 * 3 / 2 * stats.f(2, 2).ppf(0.95))
    assert (ellipse.shorter, ellipse.longer) == pytest.approx(radius * np.sqrt(lengths))


def test_two_seeds_alone_have_intervals_and_no_ellipse() -> None:
    found = frontier(*made({"a1": (10.0, 50.0), "a2": (30.0, 10.0)}, noise=0.0), {"a": ["a1", "a2"]}, seed=0)
    assert found.ellipse("a") is None
    assert found.rating("a", 0).high > 20


def test_axes_of_other_draws_are_refused() -> None:
    one, _ = made({"a": (0.0, 0.0)})
    _, other = made({"a": (0.0, 0.0)}, samples=10)
    with pytest.raises(ValueError, match="as many draws"):
        frontier(one, other, {"a": ["a"]}, seed=0)

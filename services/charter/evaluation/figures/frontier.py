"""Where ways to train stand on two axes, such as helpfulness and harmlessness, and which of them is better on both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, fdtri

from charter.evaluation.figures.ratings import Ratings
from charter.evaluation.figures.seeds import OverSeeds, over_seeds
from charter.evaluation.statistics import LEVEL, Array, Estimate, interval_of


@dataclass(frozen=True, slots=True)
class Ellipse:
    """A 95 % region of an arm's two ratings: half its axes in points, and the angle of the longer to the first axis."""

    across: float
    up: float
    longer: float
    shorter: float
    # Radians.
    angle: float

    def outline(self, points: int = 72) -> Array:
        """Points on it [points, 2]."""
        turn = np.linspace(0.0, 2 * np.pi, points)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along, beside = self.longer * np.cos(turn), self.shorter * np.sin(turn)
        return np.stack([self.across + cos * along - sin * beside, self.up + sin * along + cos * beside], axis=1)


@dataclass(frozen=True, slots=True)
class Frontier:
    """Arms on two axes by one judge, each the mean over its seeds; the start is the last of the names, at 0 on both."""

    names: tuple[str, ...]
    # Prompts of the axes.
    prompts: tuple[int, int]
    seeds: OverSeeds

    def rating(self, arm: str, axis: int) -> Estimate:
        """Of an arm on the first axis (0) or the second (1): its distance from the start in Elo points."""
        place = self.names.index(arm)
        value = float(self.seeds.means[place, axis])
        return Estimate(value, *interval_of(self.seeds.draws[:, place, axis], value), self.prompts[axis])

    def ellipse(self, arm: str) -> Ellipse | None:
        """The 95 % region of both ratings of an arm; None where two seeds are all that there is.

        Hotelling's (1931): its squared radius is ``2 df / (df - 1) F(2, df - 1)`` with df of the covariance.
        """
        place = self.names.index(arm)
        middle, df = self.seeds.means[place], float(self.seeds.covariance_degrees[place])
        if self.seeds.degrees == 1:
            # Two policies lie on a line, whatever the plane.
            return None
        lengths, directions = np.linalg.eigh(self.seeds.covariances[place])
        squared = chdtri(2, 1 - LEVEL) if np.isinf(df) else 2 * df / (df - 1) * fdtri(2, df - 1, LEVEL)
        shorter, longer = (float(np.sqrt(squared * max(length, 0.0))) for length in lengths)
        angle = float(np.arctan2(directions[1, 1], directions[0, 1]))
        return Ellipse(float(middle[0]), float(middle[1]), longer, shorter, angle)

    def dominates(self, arm: str, other: str) -> float:
        """The probability that an arm is better than another on both axes: the share of draws in which it is."""
        i, j = self.names.index(arm), self.names.index(other)
        return float((self.seeds.draws[:, i] > self.seeds.draws[:, j]).all(axis=1).mean())

    def front(self) -> tuple[str, ...]:
        """The arms that no other is better than on both axes, as the ratings are: the Pareto front."""
        ahead = _on_front(self.seeds.means[None])[0]
        return tuple(name for name, is_on in zip(self.names, ahead, strict=True) if is_on)

    def on_front(self) -> dict[str, float]:
        """The probability that each arm is on the front: the share of draws in which it is."""
        return dict(zip(self.names, _on_front(self.seeds.draws).mean(axis=0).tolist(), strict=True))


def frontier(across: Ratings, up: Ratings, arms: Mapping[str, Sequence[str]], *, seed: int) -> Frontier:
    """Arms by the ratings of their policies on two axes, which are of different prompts.

    Args:
        across: ratings on the first axis.
        up: on the second, with other seeds than the first: their prompts are others.
        arms: by name, the models of its seeds; each is rated on both axes.
        seed: of what is drawn of the seeds.

    Raises:
        ValueError: an arm without a model, a model that is not rated, or axes that differ in their start or draws.
    """
    if across.names[0] != up.names[0] or len(across.draws) != len(up.draws):
        raise ValueError("both axes must be measured from one start by as many draws")
    axes = [(one, [[one.names.index(model) for model in models] for models in arms.values()]) for one in (across, up)]
    values = [np.stack([one.values[places[arm]] for one, places in axes], axis=-1) for arm in range(len(arms))]
    draws = [np.stack([one.draws[:, places[arm]] for one, places in axes], axis=-1) for arm in range(len(arms))]
    found = over_seeds(values, draws, seed)
    return Frontier((*arms, across.names[0]), (across.prompts, up.prompts), _with_start(found))


def _with_start(found: OverSeeds) -> OverSeeds:
    """With the start as the last arm, which is where it is."""

    def padded(array: Array, axis: int) -> Array:
        return np.pad(array, [(0, int(place == axis)) for place in range(array.ndim)])

    worth = np.append(found.covariance_degrees, np.inf)
    return OverSeeds(padded(found.means, 0), padded(found.draws, 1), padded(found.covariances, 0), worth, found.degrees)


def _on_front(places: Array) -> Array:
    """Which arms no other is better than on both axes [draws, arms], of [draws, arms, 2].

    Better is greater on one axis and not less on the other.
    """
    one, other = places[:, :, None], places[:, None, :]
    worse = np.all(other >= one, axis=-1) & np.any(other > one, axis=-1)
    return np.asarray(~np.any(worse, axis=2))

"""Where the arms of a study stand on both axes by one judge: as it judged, and as if all answers were equally long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from charter.evaluation.figures.frontier import Ellipse, Frontier, frontier
from charter.evaluation.figures.length_control import length_controlled
from charter.evaluation.figures.ratings import ELO, Ratings, ratings
from charter.evaluation.figures.rows import Judgement, between
from charter.evaluation.statistics import Array, Estimate, NotIdentifiedError
from charter.hashing import stable_number
from charter.study.points import Point


@dataclass(frozen=True, slots=True)
class Spot:
    """Where an arm stands after so many steps of RL, or at its end (None): means over its seeds, in Elo points."""

    arm: str
    step: int | None
    seeds: tuple[int, ...]
    across: Estimate
    up: Estimate
    # How likely its answer is preferred to the start's, by its ratings across and up.
    preferred: tuple[Estimate, Estimate]
    # None where two seeds are all that there is.
    ellipse: Ellipse | None
    # Ratings of each seed's policy on both axes.
    policies: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Front:
    """All arms by one judge; the start is at 0 on both axes."""

    # By arm in the order of the study, each with its steps before its end.
    spots: tuple[Spot, ...]
    # Of the ends, and the start.
    front: tuple[str, ...]
    on_front: dict[str, float]
    # By arm, the probability that it is better than each other one on both axes.
    dominates: dict[str, dict[str, float]]
    # Seeds beyond the first of all arms; 0 = intervals say nothing of other seeds.
    degrees: int
    # Why arms are missing.
    notes: tuple[str, ...] = ()

    @property
    def ends(self) -> list[Spot]:
        """The spots of the ends."""
        return [spot for spot in self.spots if spot.step is None]

    def end(self, arm: str) -> Spot | None:
        """Where an arm ends; None where nobody can tell."""
        return next((spot for spot in self.ends if spot.arm == arm), None)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one judge said of the policies of a study."""

    points: Sequence[Point]
    start: str
    # On prompts of the axes, across and up.
    rows: tuple[Sequence[Judgement], Sequence[Judgement]]
    # Tokens of answers by prompt, model and sample.
    lengths: Mapping[tuple[str, str, int], int]
    samples: int
    seed: int

    def as_judged(self) -> Front:
        """By the ratings. Raises ``NotIdentifiedError`` where it judged no arm against the start on both axes."""
        across, up = (
            ratings(rows, self.start, samples=self.samples, seed=self._seed(axis))
            for axis, rows in enumerate(self.rows)
        )
        return self._front(across, up, ())

    def equally_long(self) -> Front:
        """By the log-odds of the length-controlled win rates, on the same scale. Raises ``NotIdentifiedError``."""
        notes: list[str] = []
        across, up = (self._controlled(axis, notes) for axis in range(2))
        return self._front(across, up, tuple(dict.fromkeys(notes)))

    def _controlled(self, axis: int, notes: list[str]) -> Ratings:
        rows = self.rows[axis]
        prompts = list(dict.fromkeys(one.prompt for one in rows))
        names, values, draws = [self.start], [0.0], [np.zeros(self.samples)]
        for point in self._judged_points():
            try:
                found = length_controlled(
                    between(rows, point.model, self.start),
                    self.lengths,
                    samples=self.samples,
                    seed=self._seed(axis),
                    among=prompts,
                )
            except NotIdentifiedError as error:
                notes.append(str(error))
                continue
            names.append(point.model)
            values.append(float(logit(found.rate.value)))
            draws.append(found.log_odds)
        return Ratings(tuple(names), ELO * np.array(values), ELO * np.stack(draws, axis=1), len(prompts), 0)

    def _front(self, across: Ratings, up: Ratings, notes: tuple[str, ...]) -> Front:
        groups: dict[int | None, dict[str, list[Point]]] = {}
        for point in self._judged_points():
            groups.setdefault(point.step, {}).setdefault(point.arm, []).append(point)
        there = {*across.names} & {*up.names}
        spots: list[Spot] = []
        ends: Frontier | None = None
        for step, arms in groups.items():
            # Those seeds that can be told may be others than those that cannot: no mean of them alone.
            told = {arm: points for arm, points in arms.items() if there >= {point.model for point in points}}
            if not told:
                continue
            models = {arm: [point.model for point in points] for arm, points in told.items()}
            found = frontier(across, up, models, seed=self._seed(2))
            spots += [_spot(found, step, points, across, up) for points in told.values()]
            ends = found if step is None else ends
        if ends is None:
            raise NotIdentifiedError(" ".join(notes) or "no arm was judged against the start on both axes yet")
        order = {point.arm: place for place, point in enumerate(self.points)}
        spots.sort(key=lambda spot: (order[spot.arm], spot.step is None, spot.step or 0))
        dominates = {arm: {other: ends.dominates(arm, other) for other in ends.names} for arm in ends.names}
        return Front(tuple(spots), ends.front(), ends.on_front(), dominates, ends.seeds.degrees, notes)

    def _judged_points(self) -> list[Point]:
        """The policies that were judged on both axes: others are not measured yet."""
        judged_on = [
            {name for one in rows if one.probability_a is not None for name in (one.model_a, one.model_b)}
            for rows in self.rows
        ]
        return [point for point in self.points if point.model in judged_on[0] & judged_on[1]]

    def _seed(self, part: int) -> int:
        """Axes have prompts of their own, and draws of their own."""
        return stable_number("study", str(self.seed), str(part))


def _spot(found: Frontier, step: int | None, points: Sequence[Point], across: Ratings, up: Ratings) -> Spot:
    arm = points[0].arm

    def of(axis: Ratings) -> Array:
        return axis.values[[axis.names.index(point.model) for point in points]]

    places = found.rating(arm, 0), found.rating(arm, 1)
    return Spot(
        arm,
        step,
        tuple(point.seed for point in points),
        *places,
        (_preferred(places[0]), _preferred(places[1])),
        found.ellipse(arm),
        tuple(zip(of(across).tolist(), of(up).tolist(), strict=True)),
    )


def _preferred(rating: Estimate) -> Estimate:
    value, low, high = (float(expit(one / ELO)) for one in (rating.value, rating.low, rating.high))
    return Estimate(value, low, high, rating.prompts)

"""The figure of a study: where its arms stand on both axes, and how they came there."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes

from charter.atomic_files import write_bytes, write_text
from charter.evaluation.report.drawing import PAGE, Palette, png_of, svg_file, svg_of
from charter.evaluation.statistics import Estimate
from charter.listed import listed
from charter.study.folder import StudyFolder
from charter.study.fronts import Front, Spot
from charter.study.results import Judged, StudyResults
from charter.study.spec import START

# So that no arm is known by its colour alone.
_MARKERS = "os^DvPX*"
# Inches of a window's figure, of a phone's, and of a file, and what is above the axes.
WIDE, NARROW, FILE, _ABOVE = (9.0, 5.4), (4.6, 4.9), (9.0, 6.2), 0.35
# Of a line of a file's title, and its letters.
_TITLE_LINE, _TITLE_LETTERS = 0.2, 110
# Points: of a label's letters and lines, and how far it is from what it names.
_LETTER, _LINE, _GAP = 6.2, 11.0, 8.0
_LABEL_SIZE = 9.5
# Where a label may be, the better ones first.
_SIDES = np.array([(1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)])


@dataclass(frozen=True, slots=True)
class Scene:
    """What is drawn: arms by one judge. Arms keep their colour and marker in all figures of a study."""

    front: Front
    axes: tuple[str, str]
    # All arms of the study in their order, each with the one whose policy it starts from.
    arms: Mapping[str, str]

    def draw(self, axes: Axes, palette: Palette) -> None:
        """Paint it."""
        axes.axhline(0, color=palette.ink, linewidth=0.7, linestyle=(0, (2, 3)), zorder=1)
        axes.axvline(0, color=palette.ink, linewidth=0.7, linestyle=(0, (2, 3)), zorder=1)
        for place, arm in enumerate(self.arms):
            spots = [(number, spot) for number, spot in enumerate(self.front.spots) if spot.arm == arm]
            if spots:
                marker = _MARKERS[(place + place // len(_MARKERS)) % len(_MARKERS)]
                self._draw_arm(axes, spots, palette.series[place % len(palette.series)], marker, palette.surface)
        ring: dict[str, Any] = {"color": palette.surface, "markeredgecolor": palette.ink, "markeredgewidth": 1.6}
        axes.plot([0], [0], "o", markersize=8, zorder=6, **ring)
        axes.margins(0.07)
        axes.set_xlim(axes.get_xlim())
        axes.set_ylim(axes.get_ylim())
        self._draw_front(axes, palette)
        self._name(axes, palette)
        axes.set_xlabel(f"{self.axes[0]}, Elo points above the start →", loc="right")
        up = f"↑ {self.axes[1]}, Elo points above the start"
        axes.text(0, 1.015, up, transform=axes.transAxes, va="bottom")

    def _draw_arm(self, axes: Axes, spots: Sequence[tuple[int, Spot]], colour: str, marker: str, surface: str) -> None:
        way = [self._begin(spots[0][1].arm), *((spot.across.value, spot.up.value) for _, spot in spots)]
        axes.plot(*zip(*way, strict=True), color=colour, linewidth=1.6, zorder=3)
        for number, spot in spots:
            here = [spot.across.value], [spot.up.value]
            if spot.step is not None:
                axes.plot(*here, marker, color=colour, markersize=4.5, zorder=4, gid=f"spot-{number}")
                continue
            if spot.ellipse is not None:
                rim = spot.ellipse.outline()
                axes.fill(*rim.T, facecolor=colour, alpha=0.13, linewidth=0, zorder=2)
                axes.plot(*rim.T, color=colour, linewidth=0.9, alpha=0.75, zorder=2)
            if len(spot.policies) > 1:
                policies = zip(*spot.policies, strict=True)
                axes.plot(*policies, marker, color=colour, markersize=3, alpha=0.55, markeredgewidth=0, zorder=4)
            edge: dict[str, Any] = {"markeredgecolor": surface, "markeredgewidth": 1.2}
            axes.plot(*here, marker, color=colour, markersize=10, **edge, zorder=5, gid=f"spot-{number}")

    def _begin(self, arm: str) -> tuple[float, float]:
        """Where an arm's curve begins: at the start, or at the end of another arm."""
        end = self.front.end(self.arms[arm])
        return (0.0, 0.0) if end is None else (end.across.value, end.up.value)

    def _draw_front(self, axes: Axes, palette: Palette) -> None:
        """The rim of what some arm on the front is better than."""
        corners = sorted(self._place(arm) for arm in self.front.front)
        left, below = axes.get_xlim()[0], axes.get_ylim()[0]
        x, y = [left], [corners[0][1]]
        for place, (across, up) in enumerate(corners):
            down = corners[place + 1][1] if place + 1 < len(corners) else below
            x += [across, across]
            y += [up, down]
        axes.plot(x, y, color=palette.ink, linewidth=1.1, linestyle=(0, (6, 3)), zorder=1.5)

    def _place(self, arm: str) -> tuple[float, float]:
        end = self.front.end(arm)
        return (0.0, 0.0) if end is None else (end.across.value, end.up.value)

    def _name(self, axes: Axes, palette: Palette) -> None:
        """Write each arm's name beside its end, where it covers least."""
        per_point = axes.figure.dpi / 72
        ends = {START: (0.0, 0.0), **{spot.arm: (spot.across.value, spot.up.value) for spot in self.front.ends}}
        drawn = np.concatenate([self._way(arm) for arm in self.arms] + [np.zeros((1, 2))])
        busy = [_box(point, (7.0, 7.0)) for point in axes.transData.transform(drawn) / per_point]
        frame = axes.transAxes.transform([(0, 0), (1, 1)]) / per_point
        for arm, place in ends.items():
            size = _LETTER * len(arm), _LINE
            middle = axes.transData.transform(place) / per_point
            boxes = [_box(middle + side * (_GAP + np.array(size) / 2), size) for side in _SIDES]
            covered = [sum(_shared(box, one) for one in busy) - 1e3 * _shared(box, frame) for box in boxes]
            best = int(np.argmin(covered))
            busy.append(boxes[best])
            across, up = _SIDES[best].astype(int)
            axes.annotate(
                arm,
                place,
                xytext=(across * _GAP, up * _GAP),
                textcoords="offset points",
                ha=("center", "left", "right")[across],
                va=("center", "bottom", "top")[up],
                fontsize=_LABEL_SIZE,
                fontweight="bold" if arm in self.front.front else "normal",
                color=palette.ink,
                zorder=7,
            )

    def _way(self, arm: str) -> np.ndarray:
        """Places along the curve of an arm [places, 2]."""
        corners = [self._begin(arm)] + [(one.across.value, one.up.value) for one in self.front.spots if one.arm == arm]
        at = np.linspace(0, len(corners) - 1, 8 * len(corners))
        return np.stack([np.interp(at, np.arange(len(corners)), axis) for axis in zip(*corners, strict=True)], axis=1)


def svg_of_front(name: str, scene: Scene, size: tuple[float, float]) -> str:
    """An ``<svg>`` element for a page; each spot is a ``g`` of class `spot` with its numbers as title."""
    width, inches = size
    front = scene.front
    shown = listed([f"{spot.arm} at {words(spot.across)}, {words(spot.up)}" for spot in front.ends])
    alternative = f"{scene.axes[0]} across and {scene.axes[1]} up, in Elo points above the start: {shown}"
    svg = svg_of(name, alternative, lambda axes: scene.draw(axes, PAGE), inches=inches, width=width, above=_ABOVE)

    def titled(found: re.Match[str]) -> str:
        text = escape(spot_words(front.spots[int(found[1])], scene.axes))
        return f'<g class="spot" tabindex="0" role="img" aria-label="{text}"><title>{text}</title>'

    return re.sub(rf'<g id="{name}-spot-(\d+)">', titled, svg)


def write_figure(results: StudyResults, folder: StudyFolder) -> None:
    """Write ``figure.svg`` and ``figure.png``: the first judge's that has one, as judged; none where nobody has."""
    judged = next((one for one in results.judges if one.as_judged is not None), None)
    if judged is None or judged.as_judged is None:
        return
    scene = Scene(judged.as_judged, results.axes, starts(results))
    lines = [line for text in _title(results, judged) for line in wrap(text, _TITLE_LETTERS)]
    width, inches = FILE
    above = _ABOVE + _TITLE_LINE * len(lines)

    def draw(axes: Axes, palette: Palette) -> None:
        scene.draw(axes, palette)
        axes.set_title("\n".join(lines), loc="left", pad=26, fontdict={"fontsize": 9}, linespacing=1.5)

    svg = svg_of("figure", lines[0], lambda axes: draw(axes, PAGE), inches=inches + above, width=width, above=above)
    write_text(folder.figure_svg, svg_file(svg))
    write_bytes(folder.figure_png, png_of(draw, inches + above, width, above))


def starts(results: StudyResults) -> dict[str, str]:
    """The arms of a study, each with the one whose policy it starts from."""
    return {one.arm: one.after for one in results.arms if one.arm != START}


def _title(results: StudyResults, judged: Judged) -> list[str]:
    """What a figure that stands alone must say of itself."""
    assert judged.as_judged is not None
    said = f"{results.name}, by {judged.judge}. {caption(judged.as_judged)}"
    return [said, *judged.remarks, *(f"Missing: {one}." for one in results.missing)]


def caption(front: Front) -> str:
    """What the signs of a figure mean."""
    uncertain = "prompts and seeds" if front.degrees else "prompts alone (one seed: another may differ by more)"
    regions = f"Ellipses: 95% over {uncertain}. " if any(spot.ellipse for spot in front.ends) else ""
    return f"{regions}Small marks: seeds. Dashed: the Pareto front."


def words(rating: Estimate) -> str:
    """A rating as text: ``+62 (45 to 77)``."""
    return f"{rating.value:+z.0f} ({rating.low:+z.0f} to {rating.high:+z.0f})"


def spot_words(spot: Spot, axes: tuple[str, str]) -> str:
    """What a spot's numbers are."""
    when = "end" if spot.step is None else f"step {spot.step}"
    seeds = f"{'seed' if len(spot.seeds) == 1 else 'seeds'} {listed([str(seed) for seed in spot.seeds])}"
    figures = (
        f"{axis} {words(rating)}, preferred {100 * rate.value:.0f}%"
        for axis, rating, rate in zip(axes, (spot.across, spot.up), spot.preferred, strict=True)
    )
    return f"{spot.arm}, {when}: {'; '.join(figures)}; {seeds}"


def _box(middle: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Lower left and upper right corner."""
    half = np.array(size) / 2
    return np.stack([middle - half, middle + half])


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """Area that two boxes share."""
    sides = np.minimum(one[1], other[1]) - np.maximum(one[0], other[0])
    return float(np.prod(np.maximum(sides, 0.0)))

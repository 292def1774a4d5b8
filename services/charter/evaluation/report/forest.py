"""Forest plots: figures of each model with their intervals, one below the other."""

from collections.abc import Iterator, Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from charter.evaluation.report.drawing import INK, SURFACE, Plot, look_of, svg_of
from charter.evaluation.statistics import Estimate

# Figures of models, by series and by model: the series are dimensions, or judges.
Figures = Mapping[str, Mapping[str, Estimate | None]]

# A plot has no more series than there are looks of them.
_MOST_SERIES = 4
# Inches of a line, and of what is above and below all of them.
_LINE, _AROUND = 0.19, 0.75
# So that no interval is known by its colour alone.
_MARKERS = "os^D"
# Behind a model's name: lines that cross it are not drawn.
_BEHIND = {"facecolor": SURFACE, "edgecolor": "none", "pad": 1}


def ratings_forest(name: str, title: str, figures: Figures, start: str, remarks: str) -> list[Plot]:
    """Ratings in Elo points, the start model at 0.

    ``name`` is unique in the page, ``remarks`` are what must be said wherever these figures stand.
    """
    caption = "100 points ahead are preferred on 64% of prompts, 200 on 76%."
    others = {name: {model: one for model, one in found.items() if model != start} for name, found in figures.items()}
    return list(_forest(name, title, others, f"Elo points above {start}", f"{caption} {remarks}".strip()))


def win_rates_forest(name: str, title: str, figures: Figures, start: str, remarks: str) -> list[Plot]:
    """How often models are preferred to the start model; as ``ratings_forest``."""
    return list(_forest(name, title, figures, f"preferred to {start}", remarks, share=True))


def _forest(name: str, title: str, figures: Figures, unit: str, caption: str, *, share: bool = False) -> Iterator[Plot]:
    """Plots of at most ``_MOST_SERIES`` series; none where no model has a figure."""
    shown = [series for series, found in figures.items() if any(found.values())]
    for begin in range(0, len(shown), _MOST_SERIES):
        part = {series: figures[series] for series in shown[begin : begin + _MOST_SERIES]}
        heading = title if begin == 0 else f"{title}, more"
        words = f"Lines are 95% intervals over prompts. {caption}".strip()
        svg = _drawn(f"{name}-{begin}", heading, part, unit, share)
        yield Plot(heading, svg, words, tuple(part) if len(shown) > 1 else ())


def _drawn(name: str, title: str, figures: Figures, unit: str, share: bool) -> str:
    models = list(dict.fromkeys(model for found in figures.values() for model, one in found.items() if one))
    # A model's name, and below it a line of each series.
    lines = 1 + len(figures)

    def draw(axes: Axes) -> None:
        for place, model in enumerate(models):
            top = -place * lines
            axes.annotate(model, (0.01, top), xycoords=("axes fraction", "data"), va="center", bbox=_BEHIND)
            for index, found in enumerate(figures.values()):
                if (one := found.get(model)) is not None:
                    y, look = top - 1 - index, look_of(index)
                    axes.plot([one.low, one.high], [y, y], **look, linewidth=2.2)
                    # Where an interval ends, whatever its dashes.
                    axes.plot([one.low, one.high], [y, y], "|", color=look["color"], markersize=7, markeredgewidth=1.6)
                    axes.plot([one.value], [y], _MARKERS[index], color=look["color"], markersize=6)
        axes.axvline(0.5 if share else 0, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_ylim(-len(models) * lines + 0.3, 0.7)
        axes.set_yticks([])
        axes.set_xlabel(unit)
        if share:
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1))

    return svg_of(name, title, draw, inches=_AROUND + _LINE * lines * len(models))

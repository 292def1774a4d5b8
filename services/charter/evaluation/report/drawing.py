"""Drawings as SVG that take their colours and their font from the page, and the same as files of their own.

Matplotlib draws with placeholder colours that become CSS variables: one drawing suits a light and a dark page.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Series colours of the page; a second line is also dashed, a third dotted, so that colour is never the only sign.
SERIES = ("#0000a1", "#0000a2", "#0000a3", "#0000a4", "#0000a5", "#0000a6", "#0000a7", "#0000a8")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.6)), (0, (5, 1.5, 1, 1.5)))
INK, _GRID, SURFACE = "#0000b1", "#0000b2", "#0000b3"


@dataclass(frozen=True, slots=True)
class Palette:
    """What a drawing is painted with."""

    series: tuple[str, ...]
    ink: str
    grid: str
    surface: str


PAGE = Palette(SERIES, INK, _GRID, SURFACE)
_NAMES = Palette(tuple(f"--series-{i}" for i in range(1, len(SERIES) + 1)), "--plot-ink", "--plot-grid", "--surface")
_VARIABLES = {
    **dict(zip(PAGE.series, _NAMES.series, strict=True)),
    INK: _NAMES.ink,
    _GRID: _NAMES.grid,
    SURFACE: _NAMES.surface,
}
# Inches; 72 SVG units each, so text of size 10 is 10 px in a column of 360 px.
_WIDTH, _HEIGHT = 5.0, 2.9
# Inches around the axes: left, right, below, and what is above where nothing is written there.
_MARGINS = (0.6, 0.075, 0.5075)
_ABOVE = 0.1015
_STYLESHEET = Path(__file__).parent / "report.css"
_PIXELS_PER_INCH = 200


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with the words that go around it."""

    title: str
    svg: str
    # What to look for, in a sentence.
    caption: str
    # Label of each series, in the order of the page's series colours; empty for one series.
    legend: tuple[str, ...] = ()
    # Series are areas, not lines.
    filled: bool = False


def look_of(index: int) -> dict[str, Any]:
    """Colour and dash of the page's series of this index."""
    return {"color": SERIES[index], "linestyle": _DASHES[index]}


def plot_series(axes: Axes, index: int, x: Sequence[float], y: Sequence[float]) -> None:
    """A line in the page's colour and dash of this index, with marks where it has few points."""
    marker = "o" if len(x) <= 40 else None
    axes.plot(x, y, **look_of(index), marker=marker, zorder=3 - 0.1 * index)


def svg_of(
    name: str,
    alternative: str,
    draw: Callable[..., None],
    heights: tuple[int, ...] = (1,),
    inches: float = _HEIGHT,
    width: float = _WIDTH,
    above: float = _ABOVE,
) -> str:
    """An ``<svg>`` element of so many ``inches``, whose ids are unique by ``name``.

    ``draw`` gets one axes for each of ``heights``, which share them; ``above`` them are so many inches.
    """
    with mpl.rc_context(_style(PAGE) | {"svg.fonttype": "none", "svg.hashsalt": "charter"}):
        out = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure = _figure(draw, heights, width, inches, above)
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    drawing = re.sub(r"<style.*?</style>", "", out.getvalue(), flags=re.DOTALL)
    head, body = re.findall(r"<svg([^>]*)>(.*)", drawing, flags=re.DOTALL)[0]
    view = re.findall(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = body.replace("'DejaVu Sans'", "var(--sans)")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return f'<svg role="img" aria-label="{escape(alternative)}" {view}>{body}'


def svg_file(element: str) -> str:
    """An element of ``svg_of`` as a file of its own, which has the colours of a light or a dark page."""
    light, dark = (";".join(f"{name}:{colour}" for name, colour in found.items()) for found in _colours())
    style = (
        f"<style>svg{{{light};--sans:sans-serif;background:var(--surface)}}"
        f"@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    head, _, body = element.partition(">")
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"{head} {namespaces}>{style}{body}"


def png_of(draw: Callable[[Axes, Palette], None], inches: float, width: float, above: float) -> bytes:
    """The same drawing as PNG, in the colours of a light page. ``draw`` paints with what it is given."""
    light, _ = _colours()
    palette = Palette(
        tuple(light[name] for name in _NAMES.series), light[_NAMES.ink], light[_NAMES.grid], light[_NAMES.surface]
    )
    with mpl.rc_context(_style(palette)):
        out = io.BytesIO()
        figure = _figure(lambda axes: draw(axes, palette), (1,), width, inches, above)
        figure.savefig(out, format="png", dpi=_PIXELS_PER_INCH, facecolor=palette.surface, metadata={"Software": None})
    return out.getvalue()


def _figure(draw: Callable[..., None], heights: tuple[int, ...], width: float, inches: float, above: float) -> Figure:
    figure = Figure(figsize=(width, inches))
    # Fixed margins, so that the plots of the page line up.
    left, right, below = _MARGINS
    figure.subplots_adjust(left=left / width, right=1 - right / width, bottom=below / inches, top=1 - above / inches)
    axes = figure.subplots(len(heights), squeeze=False, sharex=True, height_ratios=heights)
    draw(*axes[:, 0])
    return figure


def _style(palette: Palette) -> dict[str, Any]:
    return {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.edgecolor": palette.grid,
        "axes.labelcolor": palette.ink,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.formatter.useoffset": False,
        "axes.formatter.limits": (-3, 4),
        "grid.color": palette.grid,
        "grid.linewidth": 0.7,
        "text.color": palette.ink,
        "xtick.color": palette.grid,
        "ytick.color": palette.grid,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "ytick.major.size": 0,
        "lines.linewidth": 1.8,
        "lines.markersize": 3.5,
        "lines.solid_capstyle": "round",
    }


def _colours() -> tuple[dict[str, str], dict[str, str]]:
    """By variable, those of a light page and those of a dark one, as the page's own style has them."""
    light, _, dark = _STYLESHEET.read_text(encoding="utf-8").partition("@media (prefers-color-scheme: dark)")
    used = set(_VARIABLES.values())
    one, other = (re.findall(r"(--[\w-]+): (#\w+);", part) for part in (light, dark))
    first, second = ({name: colour for name, colour in found if name in used} for found in (one, other))
    return first, second

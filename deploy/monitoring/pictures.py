"""Draws the dashboards from a Prometheus, as pictures for the docs.

``python -m deploy.monitoring.pictures PROMETHEUS BEGIN END``: an address host:port, and two Unix times.
"""

import json
import math
import re
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MultipleLocator

from deploy.monitoring.dashboards import BOARDS
from deploy.monitoring.dashboards.panels import Board, Panel, Query

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "dashboards"
POINTS = 240
# Columns of a picture, those of a graph and of a number, as in Grafana, and inches of a column and of lines of panels.
COLUMNS, GRAPH, NUMBER = 6, 2, 1
WIDTH, GRAPH_HEIGHT, NUMBER_HEIGHT, HEADING_HEIGHT = 2.4, 2.7, 1.2, 0.3
MOST_IN_LEGEND = 5
NUMBERS = ("stat", "now")
# What Grafana writes for its own name of a unit; a word of ours it writes as it is.
GRAFANA_UNITS = {"reqps": "req/s"}
BYTES = ("B", "KiB", "MiB", "GiB")
# Name of a series, then its points: Unix seconds and values.
Series = tuple[str, list[float], list[float]]
# A panel and its series.
Shown = tuple[Panel, list[Series]]


def draw(board: Board, server: str, begin: float, end: float) -> plt.Figure:
    """One dashboard: its rows with their titles, and the panels in their order, those without data left out."""
    lines: list[str | list[Shown]] = []
    for title, panels in board.rows:
        row = [(panel, _found(panel, server, begin, end)) for panel in panels]
        row = [(panel, found) for panel, found in row if found]
        if row:
            across = COLUMNS // (NUMBER if panels[0].kind in NUMBERS else GRAPH)
            lines += [title, *(row[first : first + across] for first in range(0, len(row), across))]
    heights = [_height(line) for line in lines]
    # A margin for the last number's title, which may be wider than its panel.
    layout = ConstrainedLayoutEngine(rect=(0, 0, 0.98, 1))
    figure = plt.figure(figsize=(WIDTH * COLUMNS, sum(heights)), layout=layout)
    grid = figure.add_gridspec(len(lines), COLUMNS, height_ratios=heights)
    for number, line in enumerate(lines):
        if isinstance(line, str):
            axes = figure.add_subplot(grid[number, :])
            axes.set_axis_off()
            axes.text(0, 0.5, line, va="center", fontsize=11, fontweight="bold", color="tab:blue")
            continue
        # What a line lacks to be full, its graphs share.
        width = NUMBER if line[0][0].kind in NUMBERS else COLUMNS // len(line)
        for place, (panel, found) in enumerate(line):
            axes = figure.add_subplot(grid[number, place * width : (place + 1) * width])
            _panel(axes, panel, found, begin, end)
    figure.suptitle(board.title, fontsize=14, fontweight="bold")
    return figure


def _height(line: str | list[Shown]) -> float:
    if isinstance(line, str):
        return HEADING_HEIGHT
    return NUMBER_HEIGHT if line[0][0].kind in NUMBERS else GRAPH_HEIGHT


def _found(panel: Panel, server: str, begin: float, end: float) -> list[Series]:
    """The series of a panel; of the present moment only those that have a value then."""
    found = [series for query in panel.queries for series in _series(query, server, begin, end)]
    if panel.kind == "now":
        return [series for series in found if series[1][-1] > end - 2 * _step(begin, end)]
    return found


def _series(query: Query, server: str, begin: float, end: float) -> list[Series]:
    step = _step(begin, end)
    expr = query.expr
    for name in ("$namespace", "$run", "$model", "$study"):
        expr = expr.replace(name, ".*")
    for name in ("$__rate_interval", "$__interval"):
        expr = expr.replace(name, "20s")
    parameters = urllib.parse.urlencode({"query": expr, "start": begin, "end": end, "step": step})
    with urllib.request.urlopen(f"http://{server}/api/v1/query_range?{parameters}") as response:
        results = json.load(response)["data"]["result"]
    series = []
    for one in results:
        name = query.legend
        for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
            name = name.replace(f"{{{{{label}}}}}", one["metric"].get(label, ""))
        times: list[float] = []
        values: list[float] = []
        for time, value in one["values"]:
            if not math.isfinite(float(value)):
                continue
            if times and time - times[-1] > 1.5 * step:
                # The line is broken where there is no value.
                times.append(times[-1] + step)
                values.append(math.nan)
            times.append(time)
            values.append(float(value))
        if times:
            series.append((_short(name), times, values))
    return series


def _step(begin: float, end: float) -> float:
    return max(1.0, (end - begin) / POINTS)


def _short(name: str) -> str:
    """Without what only tells one machine or one run from another: there is one of each here."""
    return re.sub(r"127\.0\.0\.1:\d+|\S+-\d{8}-\d{6}-\w+|charter\.v1\.|/\S*/", "", name).strip()


def _panel(axes: Axes, panel: Panel, found: list[Series], begin: float, end: float) -> None:
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    if panel.kind in NUMBERS:
        _numbers(axes, panel, found)
    elif panel.kind == "xy":
        _scatter(axes, panel, found)
    elif panel.kind == "timeline":
        _timeline(axes, found, begin, end)
    else:
        _lines(axes, panel, found, begin, end)


def _numbers(axes: Axes, panel: Panel, found: list[Series]) -> None:
    axes.set_axis_off()
    size = 15 if len(found) == 1 else 8
    lines = [f"{name}  {_value(values[-1], panel.unit)}".strip() for name, _, values in found]
    axes.text(0, 0.95, "\n".join(lines), va="top", fontsize=size)


def _scatter(axes: Axes, panel: Panel, found: list[Series]) -> None:
    _measure(axes, panel)
    across = dict(zip(found[0][1], found[0][2], strict=True))
    for name, times, values in found[1:]:
        points = [(across[time], value) for time, value in zip(times, values, strict=True) if time in across]
        axes.scatter([x for x, _ in points], [y for _, y in points], s=8, label=name)
    axes.set_xlabel(found[0][0], fontsize=7)
    _legend(axes)


def _timeline(axes: Axes, found: list[Series], begin: float, end: float) -> None:
    step = _step(begin, end)
    found = sorted(found, key=lambda series: series[1][0])
    for row, (name, times, values) in enumerate(found):
        spans = [(time - begin, step) for time, value in zip(times, values, strict=True) if math.isfinite(value)]
        axes.broken_barh(spans, (row - 0.4, 0.8), color=f"C{row}", alpha=0.5, linewidth=0)
        # Where the bar begins, or before it where there is no room behind.
        late = spans[0][0] > 0.7 * (end - begin)
        axes.text(spans[0][0], row, f" {name} ", ha="right" if late else "left", va="center", fontsize=6)
    axes.set_yticks([])
    axes.invert_yaxis()
    _clock(axes, begin, end)


def _lines(axes: Axes, panel: Panel, found: list[Series], begin: float, end: float) -> None:
    _measure(axes, panel)
    if panel.kind == "stacked":
        # A series without a value adds nothing.
        moments = sorted({time for _, times, _ in found for time in times})
        known = [dict(zip(times, values, strict=True)) for _, times, values in found]
        heights = [
            [value if math.isfinite(value := have.get(time, 0.0)) else 0.0 for time in moments] for have in known
        ]
        axes.stackplot([time - begin for time in moments], heights, labels=[name for name, _, _ in found], alpha=0.7)
    else:
        for name, times, values in found:
            axes.plot([time - begin for time in times], values, linewidth=1.2, label=name)
    if panel.limit is not None:
        axes.axhline(panel.limit, color="tab:red", linestyle="--", linewidth=0.8)
    finite = [value for _, _, values in found for value in values if math.isfinite(value)]
    if max(finite) == min(finite) and panel.limit is None:
        # A level line is told by its axis from one that is 0.
        other = 2 * finite[0] or 1.0
        axes.set_ylim(*sorted((-0.05 * other, other)))
    if panel.unit in ("bytes", "binBps"):
        # Round numbers of these units are powers of two.
        axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(max(*finite, 8) / 6))))
    _clock(axes, begin, end)
    _legend(axes)


def _measure(axes: Axes, panel: Panel) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _value(value, panel.unit)))
    axes.grid(alpha=0.25)


def _clock(axes: Axes, begin: float, end: float) -> None:
    axes.set_xlim(0, end - begin)
    axes.set_xlabel("seconds", fontsize=7)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    shown = labels[:MOST_IN_LEGEND]
    if len(labels) > MOST_IN_LEGEND:
        shown[-1] += f" (+{len(labels) - MOST_IN_LEGEND})"
    axes.legend(handles[:MOST_IN_LEGEND], shown, fontsize=6, loc="best", framealpha=0.6)


def _value(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{100 * value:.3g}%"
        case "bytes" | "binBps":
            power = min(3, int(math.log2(value) / 10)) if value >= 1 else 0
            return f"{value / 2 ** (10 * power):.3g} {BYTES[power]}" + ("/s" if unit == "binBps" else "")
        case "s":
            return f"{value:.3g} s"
        case "none":
            return f"{value:.4g}"
        case _:
            return f"{value:.4g} {GRAFANA_UNITS.get(unit, unit)}"


def contents(board: Board) -> str:
    """What a picture was drawn of, kept in its file: the dashboard's panels with their units."""
    return "\n".join(f"{panel.title} ({panel.unit})" for _, panels in board.rows for panel in panels)


def draw_all(server: str, begin: float, end: float) -> None:
    """Every dashboard's picture for the docs."""
    FOLDER.mkdir(exist_ok=True)
    for name, board in BOARDS.items():
        figure = draw(board, server, begin, end)
        figure.savefig(FOLDER / f"{name}.png", dpi=80, metadata={"Description": contents(board)})


if __name__ == "__main__":
    draw_all(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))

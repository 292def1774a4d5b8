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
from matplotlib.ticker import FuncFormatter

from deploy.monitoring.dashboards import BOARDS
from deploy.monitoring.dashboards.panels import Board, Panel, Query

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "dashboards"
POINTS = 240
# Panels side by side, as in Grafana, and inches of one.
ACROSS = 3
WIDTH, HEIGHT, NUMBER_HEIGHT = 4.6, 2.7, 0.9
MOST_IN_LEGEND = 5
# What Grafana writes for its own names of units; a word of ours it writes as it is.
GRAFANA_UNITS = {"cps": "c/s", "reqps": "req/s"}
BYTES = ("B", "KiB", "MiB", "GiB")
# Name of a series, then its points: Unix seconds and values.
Series = tuple[str, list[float], list[float]]


def draw(board: Board, server: str, begin: float, end: float) -> plt.Figure:
    """One dashboard, its panels in their order."""
    panels = [panel for _, found in board.rows for panel in found]
    # Rows of single numbers come first, and are lower.
    numbers = math.ceil(sum(panel.kind == "stat" for panel in panels) / ACROSS)
    graphs = math.ceil(sum(panel.kind != "stat" for panel in panels) / ACROSS)
    heights = [NUMBER_HEIGHT] * numbers + [HEIGHT] * graphs
    figure, grid = plt.subplots(
        numbers + graphs, ACROSS, figsize=(WIDTH * ACROSS, sum(heights)), height_ratios=heights, squeeze=False
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
        found = [series for query in panel.queries for series in _series(query, server, begin, end)]
        _panel(axes, panel, found, begin)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(board.title, fontsize=13, fontweight="bold")
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    return figure


def _series(query: Query, server: str, begin: float, end: float) -> list[Series]:
    step = max(1.0, (end - begin) / POINTS)
    expr = query.expr
    for name in ("$namespace", "$run", "$model"):
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


def _short(name: str) -> str:
    """Without what only tells one machine or one run from another: there is one of each here."""
    return re.sub(r"127\.0\.0\.1:\d+|\S+-\d{8}-\d{6}-\w+|charter\.v1\.|/\S*/", "", name).strip()


def _panel(axes: Axes, panel: Panel, found: list[Series], begin: float) -> None:
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    if panel.kind == "stat":
        axes.set_axis_off()
        lines = [f"{name}  {_value(values[-1], panel.unit)}" for name, _, values in found]
        axes.text(0.02, 0.9, "\n".join(lines), va="top", fontsize=8)
        return
    if not found:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No data", ha="center", va="center", fontsize=8)
        return
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _value(value, panel.unit)))
    axes.grid(alpha=0.25)
    if panel.kind == "xy":
        across = dict(zip(found[0][1], found[0][2], strict=True))
        for name, times, values in found[1:]:
            points = [(across[time], value) for time, value in zip(times, values, strict=True) if time in across]
            axes.scatter([x for x, _ in points], [y for _, y in points], s=8, label=name)
        axes.set_xlabel(found[0][0], fontsize=7)
    else:
        for name, times, values in found:
            axes.plot([time - begin for time in times], values, linewidth=1.2, label=name)
        axes.set_xlabel("seconds", fontsize=7)
    if panel.limit is not None:
        axes.axhline(panel.limit, color="tab:red", linestyle="--", linewidth=0.8)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        more = f" (+{len(handles) - MOST_IN_LEGEND})" if len(handles) > MOST_IN_LEGEND else ""
        labels = labels[:MOST_IN_LEGEND]
        labels[-1] += more
        axes.legend(handles[:MOST_IN_LEGEND], labels, fontsize=6, loc="best", framealpha=0.6)


def _value(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{100 * value:.3g}%"
        case "bytes" | "Bps":
            power = min(3, int(math.log2(value) / 10)) if value >= 1 else 0
            return f"{value / 2 ** (10 * power):.3g} {BYTES[power]}" + ("/s" if unit == "Bps" else "")
        case "s":
            return f"{value:.3g} s"
        case "none":
            return f"{value:.4g}"
        case _:
            return f"{value:.4g} {GRAFANA_UNITS.get(unit, unit)}"


def contents(board: Board) -> str:
    """What a picture shows, kept in its file: the panels with their units."""
    return "\n".join(f"{panel.title} ({panel.unit})" for _, panels in board.rows for panel in panels)


def draw_all(server: str, begin: float, end: float) -> None:
    """Every dashboard's picture for the docs."""
    FOLDER.mkdir(exist_ok=True)
    for name, board in BOARDS.items():
        figure = draw(board, server, begin, end)
        figure.savefig(FOLDER / f"{name}.png", dpi=80, metadata={"Description": contents(board)})


if __name__ == "__main__":
    draw_all(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))

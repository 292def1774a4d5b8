"""The page of `charter judge calibrate --html`: one HTML file that needs nothing beside it."""

from dataclasses import fields
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from charter.evaluation import plots
from charter.evaluation.results import Calibration, ReliabilityBin
from charter.evaluation.verdict import interval, percent

_FOLDER = Path(__file__).parent


def render_judge_page(found: dict[str, Any]) -> str:
    """The page of a measurement, as `charter judge calibrate --json` prints it. Every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "svg": Markup}
    return environment.get_template("judge_page.html").render(
        found=found,
        name=PurePath(found["model"]).name,
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        interval=interval,
        reliability=[
            plots.reliability("as-served", "As served", _calibration(found["as_served"])),
            plots.reliability("calibrated", "Calibrated", _calibration(found["calibrated"])),
        ],
    )


def _calibration(figures: dict[str, Any]) -> Calibration:
    values = {one.name: figures[one.name] for one in fields(Calibration) if one.name != "bins"}
    return Calibration(**values, bins=tuple(ReliabilityBin(**entry) for entry in figures["bins"]))

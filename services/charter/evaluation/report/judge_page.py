"""The page of `charter judge calibrate --html`: one HTML file that needs nothing beside it."""

from dataclasses import fields
from pathlib import PurePath
from typing import Any

from charter.evaluation.report import plots
from charter.evaluation.report.pages import fill
from charter.runs.results import Calibration, ReliabilityBin


def render_judge_page(found: dict[str, Any]) -> str:
    """The page of a measurement, as `charter judge calibrate --json` prints it."""
    values = {
        "found": found,
        "name": PurePath(found["model"]).name,
        "reliability": [
            plots.reliability("as-served", "As served", _calibration(found["as_served"])),
            plots.reliability("calibrated", "Calibrated", _calibration(found["calibrated"])),
        ],
    }
    return fill("judge_page.html", values, {})


def _calibration(figures: dict[str, Any]) -> Calibration:
    values = {one.name: figures[one.name] for one in fields(Calibration) if one.name != "bins"}
    return Calibration(**values, bins=tuple(ReliabilityBin(**entry) for entry in figures["bins"]))

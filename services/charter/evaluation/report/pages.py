"""Fills in this room's HTML templates: each page is one file that needs nothing beside it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from charter.evaluation.report.model_names import model_name
from charter.evaluation.report.verdict import interval, percent

FOLDER = Path(__file__).parent


def fill(template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> str:
    """A template with its values and the style of all pages. Every text is escaped: answers are written by a model."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "svg": Markup, "model_name": model_name, **filters}
    style = Markup((FOLDER / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(values, style=style, interval=interval)

"""Fills in this room's HTML templates: each page is one file that needs nothing beside it."""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from charter.evaluation.report.model_names import model_name
from charter.evaluation.report.verdict import interval, percent

FOLDER = Path(__file__).parent


def fill(
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]],
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> str:
    """A template with its values, and the style of all pages. Every text is escaped: answers are written by a model.

    ``styles`` and ``scripts`` are files of this folder that are written into the page: as ``style`` behind that of all
    pages, and as ``script``, whose digest (``script_digest``) lets this script run in it and no other.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "svg": Markup, "model_name": model_name, **filters}
    script = _joined(scripts)
    return environment.get_template(template).render(
        values,
        style=Markup(_joined(("report.css", *styles))),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        interval=interval,
    )


def packed(data: object) -> str:
    """JSON as gzip in base64, which ``readData`` of listing.js reads.

    It holds no character that means something in HTML, whatever texts are in it. Raises ``ValueError`` for numbers that
    are not finite.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def _joined(files: Sequence[str]) -> str:
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in files)

"""The page of `charter evaluate`: one HTML file that needs nothing beside it."""

from pathlib import Path

from charter.atomic_files import write_text
from charter.evaluation.compare.results import Cell, Results, Standing
from charter.evaluation.report.forest import forest
from charter.evaluation.report.pages import fill


def write_page(results: Results, path: Path) -> None:
    """Write the page of an evaluation. Raises ``OSError``."""
    write_text(path, render_page(results))


def render_page(results: Results) -> str:
    """The page as text."""
    judges = [
        {
            "name": name,
            "about": about,
            "remarks": results.remarks[name],
            "left_out": results.judgements_left_out[name].in_words(),
            "dimensions": [_part(results, name, dimension) for dimension in results.dimensions()],
        }
        for name, about in results.judges.items()
    ]
    return fill("evaluation_page.html", {"results": results, "judges": judges}, {"points": points})


def points(value: float) -> str:
    """A rating as text: ``+35``."""
    return f"{value:+.0f}"


def _part(results: Results, judge: str, dimension: str) -> dict[str, object]:
    """What one judge found in one dimension."""
    standings = [one for one in results.standings if (one.judge, one.dimension) == (judge, dimension)]
    cells = {
        (one.model, one.against): one for one in results.matrix if (one.judge, one.dimension) == (judge, dimension)
    }
    title = f"Ratings by {judge}: {dimension or 'all prompts'}"
    return {
        "name": dimension,
        "prompts": results.prompts.get(dimension, sum(results.prompts.values())),
        "standings": standings,
        "needed": {one.model: _needed(one) for one in standings},
        "notes": list(dict.fromkeys(note for one in standings for note in one.notes)),
        "matrix": _matrix(list(results.models), cells),
        "forest": forest(title, {one.model: one.rating for one in standings if one.rating is not None}, results.start),
    }


def _needed(one: Standing) -> int | None:
    return None if one.win_rate is None else one.win_rate.win_rate.prompts_needed(0.5)


def _matrix(models: list[str], cells: dict[tuple[str, str], Cell]) -> dict[str, dict[str, Cell | None]]:
    """Rows of models against columns of models."""
    return {model: {against: cells.get((model, against)) for against in models} for model in models}

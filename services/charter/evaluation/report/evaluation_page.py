"""The page of `charter evaluate`: one HTML file that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from charter.atomic_files import write_text
from charter.evaluation.compare.folder import EvaluationFolder
from charter.evaluation.compare.replies import cannot_tell
from charter.evaluation.compare.results import Cell, Results, Standing
from charter.evaluation.compare.spec import EvaluateSpec
from charter.evaluation.figures.refusals import Reply
from charter.evaluation.report.drawing import Plot
from charter.evaluation.report.forest import ratings_forest, win_rates_forest
from charter.evaluation.report.pages import fill, packed
from charter.evaluation.report.side_by_side import side_by_side
from charter.evaluation.report.verdict import percent

# Of a model, that are shown: result.json has all.
_MOST_PHRASES = 20


def write_page(results: Results, spec: EvaluateSpec, folder: EvaluationFolder) -> None:
    """Write ``report.html`` of an evaluation. Raises ``StateFileError``, ``OSError``."""
    write_text(folder.report, render_page(results, side_by_side(spec, folder, results)))


def render_page(results: Results, listed: dict[str, Any]) -> str:
    """The page as text; ``listed`` is of ``side_by_side``."""
    judges = [
        {
            "name": name,
            "about": about,
            "remarks": results.remarks[name],
            "left_out": results.judgements_left_out[name].in_words(),
            # People may have voted in some of them alone.
            "dimensions": [
                _part(results, name, dimension) for dimension in results.dimensions() if _of(results, name, dimension)
            ],
            "plots": _plots_of_judge(results, name, place),
            "refusals": (refusals := [one for one in results.refusals if one.judge == name]),
            "cannot_tell": cannot_tell(refusals[0].entropy) if refusals else "",
        }
        for place, (name, about) in enumerate(results.judges.items())
    ]
    return fill(
        "evaluation_page.html",
        {
            "results": results,
            "judges": judges,
            "overview": _overview(results),
            "text_notes": list(dict.fromkeys(note for one in results.texts.values() for note in one.notes)),
            "most_phrases": _MOST_PHRASES,
            "replies": list(Reply),
            "listed": packed(listed),
        },
        {"points": points, "chance": chance},
        styles=("listing.css", "evaluation_page.css"),
        scripts=("listing.js", "blind.js", "evaluation_page.js"),
    )


def points(value: float) -> str:
    """A rating as text: ``+35``."""
    return f"{value:+z.0f}"


def chance(share: float) -> str:
    """A probability that was counted in draws as text: none of them, or all, are not 0 and 1."""
    return "<0.1%" if share < 0.001 else ">99.9%" if share > 0.999 else percent(share)


def _part(results: Results, judge: str, dimension: str) -> dict[str, object]:
    """What one judge found in one dimension."""
    standings = _of(results, judge, dimension)
    cells = {
        (one.model, one.against): one for one in results.matrix if (one.judge, one.dimension) == (judge, dimension)
    }
    return {
        "name": dimension,
        # Those that it judged.
        "prompts": max((one.win_rate.win_rate.prompts for one in standings if one.win_rate), default=0),
        "standings": standings,
        "notes": list(dict.fromkeys(note for one in standings for note in one.notes)),
        "matrix": _matrix(list(results.models), cells),
    }


def _plots_of_judge(results: Results, judge: str, place: int) -> list[Plot]:
    """Its win rates and ratings; the dimensions are the series."""
    of = {dimension or "none given": _of(results, judge, dimension) for dimension in results.dimensions()}
    return _forests(f"judge-{place}", f"by {judge}", of, results.start, results.remarks[judge])


def _overview(results: Results) -> list[Plot]:
    """Win rates and ratings on all prompts; the judges are the series. None where one judge says it all."""
    if len(results.judges) < 2 or not results.standings:
        return []
    dimension = results.dimensions()[0]
    of = {judge: _of(results, judge, dimension) for judge in results.judges}
    remarks = [one for found in results.remarks.values() for one in found]
    return _forests("all", "by all judges", of, results.start, remarks)


def _forests(
    name: str, title: str, of: Mapping[str, Sequence[Standing]], start: str, remarks: Sequence[str]
) -> list[Plot]:
    said = " ".join(remarks)
    rates = {
        series: {one.model: one.win_rate.win_rate if one.win_rate else None for one in found}
        for series, found in of.items()
    }
    ratings = {series: {one.model: one.rating for one in found} for series, found in of.items()}
    return [
        *win_rates_forest(f"{name}-wins", f"Win rates {title}", rates, start, said),
        *ratings_forest(f"{name}-ratings", f"Ratings {title}", ratings, start, said),
    ]


def _of(results: Results, judge: str, dimension: str) -> list[Standing]:
    return [one for one in results.standings if (one.judge, one.dimension) == (judge, dimension)]


def _matrix(models: list[str], cells: dict[tuple[str, str], Cell]) -> dict[str, dict[str, Cell | None]]:
    """Rows of models against columns of models."""
    return {model: {against: cells.get((model, against)) for against in models} for model in models}

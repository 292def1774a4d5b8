"""The page of a study: one HTML file that needs nothing beside it."""

from typing import Any

from charter.atomic_files import write_text
from charter.evaluation.report.evaluation_page import chance, points
from charter.evaluation.report.pages import fill
from charter.evaluation.statistics import LEVEL
from charter.listed import listed
from charter.study.figure import NARROW, WIDE, Scene, caption, starts, svg_of_front
from charter.study.folder import StudyFolder
from charter.study.fronts import Front
from charter.study.results import Judged, StudyResults
from charter.study.spec import START


def write_page(results: StudyResults, folder: StudyFolder) -> None:
    """Write ``report.html``. Raises ``OSError``."""
    write_text(folder.report, render_page(results))


def render_page(results: StudyResults) -> str:
    """The page as text."""
    across, up = results.axes
    return fill(
        "study_page.html",
        {
            "results": results,
            "across": across,
            "up": up,
            "arms": list(starts(results)),
            "verdict": _verdict(results),
            "remarks": [remark for one in results.judges for remark in one.remarks],
            "judges": [_judge(results, judged, place) for place, judged in enumerate(results.judges, start=1)],
        },
        {"points": points, "chance": chance},
        styles=("evaluation_page.css", "study_page.css"),
        scripts=("study_page.js",),
    )


def _judge(results: StudyResults, judged: Judged, place: int) -> dict[str, Any]:
    views = (
        ("judged", "answers as they are", judged.as_judged),
        ("controlled", "as if all answers were equally long", judged.equally_long),
    )
    return {
        "judged": judged,
        "place": place,
        "views": [_view(results, f"{name}-{place}", name, title, front) for name, title, front in views],
    }


def _view(results: StudyResults, unique: str, name: str, title: str, front: Front | None) -> dict[str, Any]:
    if front is None:
        return {"name": name, "title": title, "front": None, "notes": ()}
    scene = Scene(front, results.axes, starts(results))
    return {
        "name": name,
        "title": title,
        "front": front,
        "notes": front.notes,
        "caption": caption(front),
        "wide": svg_of_front(f"{unique}-wide", scene, WIDE),
        "narrow": svg_of_front(f"{unique}-narrow", scene, NARROW),
    }


def _verdict(results: StudyResults) -> list[str]:
    """What the first judge that has a figure shows, in a sentence or two."""
    judged = next((one for one in results.judges if one.as_judged is not None), None)
    if judged is None or judged.as_judged is None:
        return ["No arm is measured yet."]
    front = judged.as_judged
    across, up = results.axes
    ahead = [
        f"{arm} beats {listed(beaten)}"
        for arm, row in front.dominates.items()
        if (beaten := [_named(other) for other, share in row.items() if share >= LEVEL])
    ]
    on_front = listed([_named(arm) for arm in front.front])
    many = len(front.front) > 1
    first = f"By {judged.judge}, {on_front} {'are' if many else 'is'} on the Pareto front of {across} and {up}."
    level = f"{100 * LEVEL:.0f}%"
    if not ahead:
        return [first, f"No arm is better than another, or than the start, on both axes with a probability of {level}."]
    return [first, f"On both axes, with a probability of {level} or more: {'; '.join(ahead)}."]


def _named(arm: str) -> str:
    return "the start" if arm == START else arm

"""Exports of tools in which people compare answers, as the rows that they are about: Argilla and Label Studio."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from charter.data.errors import BadRowError
from charter.data.exports import task_of
from charter.data.pairs.pair import Pair
from charter.data.pairs.side_by_side import Columns, answer_columns, chosen_of, side_by_side_pair, side_of
from charter.data.rows import Fields

# Answers of Argilla that count; a response without a status was given, too.
_GIVEN = ("submitted", None)


def annotated_pair(fields: Fields, column: str) -> Pair | None:
    """The pair of a row, labelled by the share of people who chose the first answer; None where no tool exported it.

    ``column`` names the question where there are several. Raises ``BadRowError`` where nobody chose.
    """
    task = task_of(fields)
    if task is not None:
        answers = _label_studio(fields["annotations"]) if "data" in fields else _argilla_json(fields["responses"])
        return _pair(task, answers, column)
    if answers := _argilla_columns(fields):
        return _pair(fields, answers, column)
    return None


def _pair(row: Mapping[str, Any], answers: Mapping[str, list[Any]], column: str) -> Pair:
    """``answers`` are what people answered to each question."""
    fields = {name: value for name, value in row.items() if value is not None and name not in answers}
    columns = answer_columns(fields)
    if columns is None:
        raise BadRowError("of no known layout", f"has no two answers to one prompt; it has {', '.join(fields)}")
    asked = {column: answers.get(column, [])} if column else answers
    sides = {name: [side for one in said if (side := _side(one, columns)) is not None] for name, said in asked.items()}
    about = [name for name, found in sides.items() if found]
    if not about:
        raise BadRowError("without a label", f"nobody chose {columns.first} or {columns.second}")
    if len(about) > 1:
        raise BadRowError("of several questions", f"people chose in {', '.join(about)}: name one, as FILE#{about[0]}")
    return side_by_side_pair(fields, columns, fmean(sides[about[0]]))


def _side(answer: Any, columns: Columns) -> float | None:
    """P(the first is better) by one person: a choice, or a ranking of both answers."""
    if isinstance(answer, Mapping) and "rank" in answer:
        # As columns of a data set hold it.
        answer = _rows(answer.get("value"), answer["rank"], "rank")
    if not isinstance(answer, list):
        return side_of(answer, columns)
    ranks = {side_of(one.get("value"), columns): one.get("rank") for one in _objects(answer)}
    first, second = ranks.get(1.0), ranks.get(0.0)
    if not isinstance(first, int) or not isinstance(second, int):
        return None
    return 0.5 if first == second else float(first < second)


def _label_studio(annotations: list[Any]) -> dict[str, list[Any]]:
    """Choices of the control tags Pairwise (``selected``) and Choices (``choices``), by the tag's name."""
    found: dict[str, list[Any]] = {}
    for annotation in _objects(annotations):
        for result in () if annotation.get("was_cancelled") else _objects(annotation.get("result")):
            chosen = chosen_of(result.get("value"))
            if chosen is not None:
                found.setdefault(str(result.get("from_name")), []).append(chosen)
    return found


def _argilla_json(responses: Mapping[str, Any] | list[Any]) -> dict[str, list[Any]]:
    """Argilla 2 by question, Argilla 1 by person."""
    if isinstance(responses, Mapping):
        return {name: _given(said) for name, said in responses.items()}
    found: dict[str, list[Any]] = {}
    for one in _objects(responses):
        values = one.get("values") if one.get("status") in _GIVEN else None
        for name, said in values.items() if isinstance(values, Mapping) else ():
            found.setdefault(name, []).extend(value.get("value") for value in _objects([said]))
    return found


def _argilla_columns(fields: Fields) -> dict[str, list[Any]]:
    """Columns of a data set that was pushed to the hub: Argilla 2, then Argilla 1."""
    found: dict[str, list[Any]] = {}
    for name, said in fields.items():
        if name.endswith(".responses") and isinstance(said, list):
            found[name.removesuffix(".responses")] = _given(_rows(said, fields.get(f"{name}.status"), "status"))
        elif isinstance(said, list) and said and all(isinstance(one, Mapping) and "user_id" in one for one in said):
            found[name] = _given(said)
        elif isinstance(said, Mapping) and "user_id" in said:
            found[name] = _given(_rows(said.get("value"), said.get("status"), "status"))
    return found


def _given(said: Any) -> list[Any]:
    """What people said, without drafts and what they discarded."""
    return [one.get("value") for one in _objects(said) if one.get("status") in _GIVEN]


def _rows(values: Any, others: Any, name: str) -> list[dict[str, Any]]:
    """``value`` with ``name`` of each, from two columns; the second may be missing. Raises ``BadRowError``."""
    others = others if others else [None] * len(values if isinstance(values, list) else ())
    if not isinstance(values, list) or not isinstance(others, list) or len(values) != len(others):
        raise BadRowError("of no known layout", f"answers and their {name} must be lists of one length")
    return [{"value": value, name: other} for value, other in zip(values, others, strict=True)]


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []

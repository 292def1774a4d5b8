"""Exports of tools in which people annotate, Argilla and Label Studio: what a row showed them is in a part of it."""

from collections.abc import Mapping

from charter.data.rows import Fields


def task_of(fields: Fields) -> Fields | None:
    """The columns of the task that people were shown; None for a row that no tool exported."""
    if isinstance(fields.get("data"), Mapping) and isinstance(fields.get("annotations"), list):
        task = fields["data"]
    elif isinstance(fields.get("fields"), Mapping) and isinstance(fields.get("responses"), Mapping | list):
        task = fields["fields"]
    else:
        return None
    return {name: value for name, value in task.items() if value is not None}

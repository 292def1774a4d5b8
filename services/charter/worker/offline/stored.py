"""Comparisons of the store as a stage found them, in a file of the run: what others add later changes nothing in it."""

from collections.abc import Callable, Iterator
from pathlib import Path

from charter.spec.label_checks import OWN
from charter.storage.comparison_files import write_comparisons
from charter.v1 import run_pb2, types_pb2
from charter.worker.context import Run
from charter.worker.errors import SpecError


def taken_from_store(
    run: Run,
    section: str,
    chosen: run_pb2.StoredComparisons,
    file: Path,
    wanted: Callable[[types_pb2.Comparison], bool],
) -> None:
    """Write the chosen comparisons that are ``wanted`` to a file. Raises ``SpecError`` where there is none."""

    def found() -> Iterator[types_pb2.Comparison]:
        run_id = run.id if chosen.run_id == OWN else chosen.run_id
        for one in run.services.preference.comparisons(run_id, chosen.source, chosen.dimension):
            if chosen.method in ("", one.method) and wanted(one):
                yield one

    if not write_comparisons(file, found()):
        file.unlink()
        raise SpecError(
            f"{section}.stored: the preference service at {run.services.preference.address} holds none of these. "
            "`charter preferences stats` shows what it holds; `charter preferences import` and `charter feedback` add "
            "to it"
        )

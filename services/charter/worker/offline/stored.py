"""Comparisons of the store as a stage found them, in a file of the run: what others add later changes nothing in it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from charter.spec.label_checks import OWN
from charter.storage.comparison_files import write_comparisons
from charter.v1 import run_pb2, types_pb2
from charter.worker.context import Run
from charter.worker.errors import SpecError


def taken_from_store(
    run: Run,
    chosen: Mapping[str, run_pb2.StoredComparisons],
    file: Path,
    wanted: Callable[[types_pb2.Comparison], bool],
) -> None:
    """Write the comparisons that are ``wanted`` of those that fields of the spec choose, each once, to a file.

    Raises ``SpecError`` where there is none that a field chooses.
    """
    given: set[str] = set()

    def found() -> Iterator[types_pb2.Comparison]:
        for field, one in chosen.items():
            there = False
            for comparison in _chosen(run, one):
                if wanted(comparison):
                    there = True
                    if comparison.id not in given:
                        given.add(comparison.id)
                        yield comparison
            if not there:
                raise SpecError(nothing_stored(field, run.services.preference.address))

    write_comparisons(file, found())


def nothing_stored(field: str, address: str) -> str:
    """In words: the store holds nothing that a field of the spec chooses."""
    return (
        f"{field}: the preference service at {address} holds none of these. `charter preferences stats` shows what it "
        "holds; `charter preferences import` and `charter feedback` add to it"
    )


def _chosen(run: Run, one: run_pb2.StoredComparisons) -> Iterator[types_pb2.Comparison]:
    run_id = run.id if one.run_id == OWN else one.run_id
    for comparison in run.services.preference.comparisons(run_id, one.source, one.dimension):
        if one.method in ("", comparison.method):
            yield comparison

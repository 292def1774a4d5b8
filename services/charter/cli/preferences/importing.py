"""Reads files of comparisons for an import: checks every row first, and leaves out those that are of no use."""

import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from charter.jsonl import MOST_NAMED, RowError
from charter.rpc.validation import violations
from charter.storage.comparison_files import read_rows
from charter.storage.comparison_layouts import LeftOutError, PairDefaults, read_comparison
from charter.storage.comparisons import Row, label_problem
from charter.v1 import preference_pb2, types_pb2

# An import request stays well below the 64 MiB that a message may hold.
_REQUEST_COMPARISONS = 1000
_REQUEST_BYTES = 8 * 1024 * 1024
_COMPARISON_BYTES = 32 * 1024 * 1024

# Places (``line 3``) of the rows that are left out, by kind.
LeftOut = Mapping[str, Sequence[str]]


def check_files(sources: Iterable[tuple[Path, PairDefaults]], most_left_out: float) -> dict[Path, LeftOut]:
    """Read every file to its end, and say what has to be left out of each.

    Raises ``RowError`` that names the malformed rows of all files, the files without a comparison, and those of whose
    rows more than the share ``most_left_out`` would be left out; ``OSError`` when a file cannot be read.
    """
    left_out: dict[Path, LeftOut] = {}
    problems: list[str] = []
    for file, defaults in sources:
        found: dict[str, list[str]] = defaultdict(list)
        rows, before = 0, len(problems)
        try:
            for place, row in read_rows(file):
                rows += 1
                try:
                    _comparison(file, place, row, defaults)
                except LeftOutError as error:
                    found[error.kind].append(place)
                except RowError as error:
                    problems += error.problems
        except RowError as error:
            problems += error.problems
        if rows == 0 and len(problems) == before:
            problems.append(f"{file} holds no comparisons")
        if sum(map(len, found.values())) > most_left_out * rows:
            problems.append(
                f"{file}: {', '.join(told(found))}: more than {most_left_out:.0%} of its {rows} rows. Mend the file, "
                "or raise --most-left-out"
            )
        left_out[file] = found
    if problems:
        raise RowError(problems)
    return left_out


def read_file(file: Path, defaults: PairDefaults) -> Iterator[types_pb2.Comparison]:
    """The comparisons of a file that was checked, without those that are left out."""
    for place, row in read_rows(file):
        try:
            yield _comparison(file, place, row, defaults)
        except LeftOutError:
            continue


def told(left_out: LeftOut) -> list[str]:
    """What was left out in words, with the first places of each kind."""
    return [
        f"{len(places)} {kind} ({', '.join(places[:MOST_NAMED])}{', …' if len(places) > MOST_NAMED else ''})"
        for kind, places in sorted(left_out.items())
    ]


def unreadable(error: OSError) -> str:
    """Why a file cannot be read, in words."""
    reason = {FileNotFoundError: "there is no such file", IsADirectoryError: "it is a folder"}.get(type(error))
    return f"cannot read {error.filename or 'the file'}: {reason or os.strerror(error.errno or 0)}"


def requests(comparisons: Iterable[types_pb2.Comparison]) -> Iterator[preference_pb2.AddComparisonsRequest]:
    """Comparisons in requests of bounded size."""
    request, size = preference_pb2.AddComparisonsRequest(request_id=uuid.uuid4().hex), 0
    for comparison in comparisons:
        full = len(request.comparisons) == _REQUEST_COMPARISONS or size + comparison.ByteSize() > _REQUEST_BYTES
        if request.comparisons and full:
            yield request
            request, size = preference_pb2.AddComparisonsRequest(request_id=uuid.uuid4().hex), 0
        request.comparisons.append(comparison)
        size += comparison.ByteSize()
    if request.comparisons:
        yield request


def _comparison(file: Path, place: str, row: Row, defaults: PairDefaults) -> types_pb2.Comparison:
    """A comparison that the service will take. Raises ``RowError``, ``LeftOutError``."""
    try:
        comparison = read_comparison(row, defaults)
    except LeftOutError:
        raise
    except ValueError as error:
        raise RowError([f"{file}, {place}: {error}"]) from error
    if found := violations(comparison):
        raise RowError([f"{file}, {place}: " + "; ".join(f"{one.field} {one.description}" for one in found)])
    if problem := label_problem(comparison):
        raise RowError([f"{file}, {place}: {problem}"])
    if comparison.ByteSize() > _COMPARISON_BYTES:
        size = f"holds {comparison.ByteSize()} bytes, at most {_COMPARISON_BYTES} are possible"
        raise RowError([f"{file}, {place}: {size}"])
    return comparison

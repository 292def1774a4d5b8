"""Writes and streams many comparisons: rows a second, and the memory that the store's process needs for it.

    python -m tests.benchmarks.preference_store --rows 1000000 --database sqlite
    python -m tests.benchmarks.preference_store --rows 1000000 --database postgres

Writing is ``ComparisonStore.add`` in requests of 1000, reading is every page of ``ComparisonStore.page``: what the
service does behind AddComparisons and StreamComparisons. PostgreSQL is a fresh server without fsync. The peak of the
resident memory is printed after the imports, after writing and after reading: if it grows with ``--rows``, something
holds the rows.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from charter.preference.store import ComparisonStore
from charter.preference.tables import SCHEMA
from charter.storage.database import open_database
from charter.v1 import preference_pb2, types_pb2

from tests.support.comparisons import comparison
from tests.support.postgres import find_binaries, running_cluster

_REQUEST = 1000
# Characters of each answer; a chat answer of about 120 tokens.
_ANSWER = 500


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    options = parser.parse_args()
    with database_url(options.database) as url:
        engine = open_database(url, SCHEMA)
        store = ComparisonStore(engine)
        at_start = peak_mib()
        begin = time.monotonic()
        for request in range(0, options.rows, _REQUEST):
            store.add(f"request {request}", list(rows(request, min(request + _REQUEST, options.rows))))
        writing = time.monotonic() - begin
        after_writing = peak_mib()
        begin = time.monotonic()
        read = stream(store)
        reading = time.monotonic() - begin
        engine.dispose()
    if read != options.rows:
        raise RuntimeError(f"{read} of {options.rows} comparisons came back")
    figures = {
        "database": options.database,
        "rows": options.rows,
        "written_per_second": round(options.rows / writing),
        "read_per_second": round(read / reading),
        "peak_mib": {"start": at_start, "after_writing": after_writing, "after_reading": peak_mib()},
    }
    print(json.dumps(figures))  # noqa: T201 - the result


def rows(first: int, end: int) -> Iterator[types_pb2.Comparison]:
    """Comparisons that differ."""
    for number in range(first, end):
        yield comparison(f"answer {number} ".ljust(_ANSWER, "x"), run_id=f"run {number % 7}", dimension="helpful")


def stream(store: ComparisonStore) -> int:
    """Read every page and let go of it."""
    found, cursor, newest = 0, 0, store.newest()
    while page := store.page(preference_pb2.ComparisonFilter(), cursor, newest):
        found += len(page.comparisons)
        cursor = page.cursor
    return found


@contextmanager
def database_url(kind: str) -> Iterator[str]:
    """A database that is gone afterwards."""
    with ExitStack() as stack:
        if kind == "postgres":
            binaries = find_binaries()
            if binaries is None:
                raise SystemExit("no PostgreSQL server found (initdb)")
            yield stack.enter_context(running_cluster(binaries)).new_database()
        else:
            folder = Path(tempfile.mkdtemp(prefix="charter-benchmark-"))
            stack.callback(shutil.rmtree, folder)
            yield f"sqlite:///{folder}/charter.db"


def peak_mib() -> int:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()

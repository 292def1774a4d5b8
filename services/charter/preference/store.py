"""The store of comparisons. Its methods block: call them off the event loop."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from charter.preference.tables import ComparisonRow, PrincipleRow, RequestRow
from charter.rpc.errors import invalid_fields
from charter.rpc.validation import MOST_VIOLATIONS, Violation
from charter.storage.comparisons import (
    COLUMNS,
    LABELLED,
    MOST_WEIGHT_VERSION,
    Row,
    comparison_from_row,
    comparison_to_row,
    content_digest,
    enum_name,
    label_problem,
)
from charter.v1 import preference_pb2, types_pb2

# A page is at most this many rows, and ends with the row that passes this many bytes.
PAGE_ROWS = 1000
PAGE_BYTES = 1024 * 1024

_LABELLED_NAMES = [enum_name("outcome", outcome) for outcome in LABELLED]


@dataclass(frozen=True, slots=True)
class Added:
    """The answer to one request, and what it stored: number of new comparisons by (outcome, source)."""

    added: int
    duplicates: int
    ids: tuple[str, ...]
    stored: Counter[tuple[str, str]]
    # The request had been answered before; nothing was stored now.
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Comparisons in order of storing; ``cursor`` is behind the last of them."""

    comparisons: list[types_pb2.Comparison]
    cursor: int


class ComparisonStore:
    """Comparisons in a SQL database. Every method is one transaction and may be called from any thread."""

    def __init__(self, database: sa.Engine) -> None:
        self._database = database

    def add(self, request_id: str, comparisons: Sequence[types_pb2.Comparison]) -> Added:
        """Store all comparisons, or none.

        One whose content is stored already (see ``content_digest``) is a duplicate. A request id that was seen before
        gives its first answer and stores nothing. Raises ``StatusError`` INVALID_ARGUMENT that names each item whose
        soft label is missing or contradicts its outcome.
        """
        _check(comparisons)
        rows = [comparison_to_row(comparison) for comparison in comparisons]
        digests = [content_digest(row) for row in rows]
        with self._database.begin() as connection:
            _lock(connection)
            if answered := _answered(connection, request_id):
                return answered
            known = set(connection.scalars(sa.select(ComparisonRow.id).where(ComparisonRow.id.in_(digests))))
            now = datetime.now(UTC)
            sizes = [comparison.ByteSize() for comparison in comparisons]
            new = {
                digest: {**row, "id": digest, "size": size, "create_time": row["create_time"] or now}
                for digest, row, size in zip(digests, rows, sizes, strict=True)
                if digest not in known
            }
            _insert(connection, new)
            added = Added(
                added=len(new),
                duplicates=len(comparisons) - len(new),
                ids=tuple(digests),
                stored=Counter((row["outcome"], row["source"]) for row in new.values()),
            )
            connection.execute(
                sa.insert(RequestRow).values(
                    request_id=request_id,
                    added=added.added,
                    duplicates=added.duplicates,
                    ids=bytes.fromhex("".join(digests)),
                )
            )
        return added

    def remove(self, ids: Sequence[str], source: str, labeller: str) -> int:
        """Take out comparisons of one labeller; returns how many. Others' ids, and unknown ones, are left alone.

        The rows stay, unseen and under another id: SQLite would give the number of a deleted last row to the next one,
        and a cursor would pass it.
        """
        mine = (ComparisonRow.id.in_(ids), ComparisonRow.source == source, ComparisonRow.labeller == labeller)
        with self._database.begin() as connection:
            _lock(connection)
            sequences = connection.scalars(sa.select(ComparisonRow.sequence).where(*mine)).all()
            connection.execute(sa.delete(PrincipleRow).where(PrincipleRow.comparison.in_(sequences)))
            hide = sa.update(ComparisonRow).where(ComparisonRow.sequence == sa.bindparam("one"))
            if sequences:
                connection.execute(
                    hide.values(id=sa.bindparam("new_id"), removed=True),
                    [{"one": sequence, "new_id": f"removed {sequence}"} for sequence in sequences],
                )
        return len(sequences)

    def newest(self) -> int:
        """Cursor behind the comparison that was stored last; 0 when there is none."""
        with self._database.connect() as connection:
            return connection.scalar(sa.select(sa.func.max(ComparisonRow.sequence))) or 0

    def page(self, chosen: preference_pb2.ComparisonFilter, after: int, last: int) -> Page | None:
        """The next comparisons behind cursor ``after``, up to cursor ``last``; None when there are no more.

        Memory is bounded by ``PAGE_ROWS`` and ``PAGE_BYTES``, except that one large comparison makes a page of its own.
        """
        conditions = [*_conditions(chosen), ComparisonRow.sequence > after, ComparisonRow.sequence <= last]
        sizes = (
            sa.select(ComparisonRow.sequence, ComparisonRow.size)
            .where(*conditions)
            .order_by(ComparisonRow.sequence)
            .limit(PAGE_ROWS)
        )
        with self._database.connect() as connection:
            cursor = _page_end(connection.execute(sizes).all())
            if cursor is None:
                return None
            columns = [getattr(ComparisonRow, name) for name in COLUMNS]
            rows = connection.execute(
                sa.select(*columns)
                .where(*conditions, ComparisonRow.sequence <= cursor)
                .order_by(ComparisonRow.sequence)
            )
            return Page([_from_stored(dict(row)) for row in rows.mappings()], cursor)

    def stats(self, chosen: preference_pb2.ComparisonFilter) -> preference_pb2.GetStatsResponse:
        """Counts by value, most frequent first, and moments of the soft label (population standard deviation)."""
        conditions = _conditions(chosen)
        with self._database.connect() as connection:

            def count_by(column: Any) -> list[preference_pb2.CountByValue]:
                query = sa.select(column, sa.func.count()).select_from(ComparisonRow)
                if column is PrincipleRow.principle_id:
                    query = query.join(PrincipleRow, PrincipleRow.comparison == ComparisonRow.sequence)
                query = query.where(*conditions).group_by(column)
                counts = sorted(connection.execute(query), key=lambda entry: (-entry[1], entry[0]))
                return [preference_pb2.CountByValue(value=value, count=count) for value, count in counts]

            probability = ComparisonRow.probability_a
            mean, mean_square = connection.execute(
                sa.select(sa.func.avg(probability), sa.func.avg(probability * probability)).where(*conditions)
            ).one()
            by_outcome = count_by(ComparisonRow.outcome)
            return preference_pb2.GetStatsResponse(
                total=sum(entry.count for entry in by_outcome),
                by_outcome=by_outcome,
                by_source=count_by(ComparisonRow.source),
                by_dimension=count_by(ComparisonRow.dimension),
                by_principle=count_by(PrincipleRow.principle_id),
                by_split=count_by(ComparisonRow.split),
                mean_probability_a=mean,
                std_probability_a=None if mean is None else math.sqrt(max(0.0, mean_square - mean * mean)),
            )


def _check(comparisons: Sequence[types_pb2.Comparison]) -> None:
    found: list[Violation] = []
    for index, comparison in enumerate(comparisons):
        if problem := label_problem(comparison):
            found.append(Violation(f"comparisons[{index}]", problem))
        try:
            comparison.create_time.ToDatetime(UTC)
        except (ValueError, OverflowError) as error:
            found.append(Violation(f"comparisons[{index}].create_time", f"is no time: {error}"))
        for name in ("answer_a", "answer_b"):
            if getattr(comparison, name).weight_version > MOST_WEIGHT_VERSION:
                field = f"comparisons[{index}].{name}.weight_version"
                found.append(Violation(field, f"must be at most {MOST_WEIGHT_VERSION}"))
    if found:
        raise invalid_fields(found[:MOST_VIOLATIONS])


def _lock(connection: sa.Connection) -> None:
    """Let one writer at a time number its rows: a cursor would otherwise pass rows that are committed late."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('charter.comparisons'))"))


def _answered(connection: sa.Connection, request_id: str) -> Added | None:
    row = connection.execute(
        sa.select(RequestRow.added, RequestRow.duplicates, RequestRow.ids).where(RequestRow.request_id == request_id)
    ).one_or_none()
    if row is None:
        return None
    size = hashlib.sha256().digest_size
    ids = tuple(row.ids[start : start + size].hex() for start in range(0, len(row.ids), size))
    return Added(row.added, row.duplicates, ids, Counter(), repeated=True)


def _insert(connection: sa.Connection, new: dict[str, Row]) -> None:
    """Store rows by their digests, and by which principles they were judged."""
    if not new:
        return
    connection.execute(sa.insert(ComparisonRow), list(new.values()))
    judged = [digest for digest, row in new.items() if row["judgements"]]
    sequences = connection.execute(
        sa.select(ComparisonRow.id, ComparisonRow.sequence).where(ComparisonRow.id.in_(judged))
    )
    principles = [
        {"principle_id": principle, "comparison": sequence}
        for digest, sequence in sequences
        for principle in sorted({judgement["principle_id"] for judgement in new[digest]["judgements"]})
    ]
    if principles:
        connection.execute(sa.insert(PrincipleRow), principles)


def _conditions(chosen: preference_pb2.ComparisonFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [ComparisonRow.removed.is_(None)]
    for name in ("id", "run_id", "dimension"):
        if value := getattr(chosen, name):
            conditions.append(getattr(ComparisonRow, name) == value)
    for name in ("source", "split"):
        if number := getattr(chosen, name):
            conditions.append(getattr(ComparisonRow, name) == enum_name(name, number))
    if chosen.principle_id:
        judged = sa.select(PrincipleRow.comparison).where(PrincipleRow.principle_id == chosen.principle_id)
        conditions.append(ComparisonRow.sequence.in_(judged))
    if chosen.labelled_only:
        conditions.append(ComparisonRow.outcome.in_(_LABELLED_NAMES))
    return conditions


def _page_end(sizes: Sequence[tuple[int, int]]) -> int | None:
    """Cursor behind the first rows that together pass ``PAGE_BYTES``, or behind all of them."""
    total = 0
    for cursor, size in sizes:
        total += size
        if total >= PAGE_BYTES:
            return cursor
    return sizes[-1][0] if sizes else None


def _from_stored(row: dict[str, Any]) -> types_pb2.Comparison:
    if row["create_time"].tzinfo is None:
        # SQLite keeps no time zone; what was stored is UTC.
        row["create_time"] = row["create_time"].replace(tzinfo=UTC)
    return comparison_from_row(row)

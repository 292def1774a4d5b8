"""The store of comparisons, on a real SQLite and a real PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from charter.preference import store as store_module
from charter.preference.store import ComparisonStore
from charter.preference.tables import SCHEMA, Base
from charter.rpc.errors import StatusError
from charter.storage.database import open_database
from charter.v1 import preference_pb2, types_pb2

from tests.support.comparisons import comparison, full_comparison

Filter = preference_pb2.ComparisonFilter
EVERYTHING = Filter()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    postgres = request.param == "postgres"
    url = request.getfixturevalue("postgres_url") if postgres else f"sqlite:///{tmp_path}/charter.db"
    engine = open_database(url, SCHEMA)
    yield engine
    engine.dispose()


@pytest.fixture
def store(database: sa.Engine) -> ComparisonStore:
    return ComparisonStore(database)


def everything(
    store: ComparisonStore, chosen: preference_pb2.ComparisonFilter = EVERYTHING
) -> list[types_pb2.Comparison]:
    found, cursor = [], 0
    while page := store.page(chosen, cursor, store.newest()):
        found += page.comparisons
        cursor = page.cursor
    return found


def test_migrations_make_the_tables_of_the_code(database: sa.Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": SCHEMA.version_table})
        assert compare_metadata(context, Base.metadata) == []


def test_every_field_comes_back(store: ComparisonStore) -> None:
    sent = full_comparison()
    added = store.add("r", [sent])
    (stored,) = everything(store)
    sent.id = added.ids[0]
    assert stored == sent
    assert len(sent.id) == 64


def test_unset_stays_unset_and_the_time_is_set(store: ComparisonStore) -> None:
    before = datetime.now(UTC).replace(tzinfo=None)
    store.add("r", [comparison(probability=None, outcome=types_pb2.OUTCOME_UNAVAILABLE)])
    (stored,) = everything(store)
    assert not stored.HasField("probability_a")
    assert not stored.answer_a.HasField("weight_version")
    assert before <= stored.create_time.ToDatetime() <= datetime.now(UTC).replace(tzinfo=None)


def test_repeated_request_gives_the_first_answer(store: ComparisonStore) -> None:
    first = store.add("r", [comparison("one"), comparison("two"), comparison("one")])
    assert (first.added, first.duplicates) == (2, 1)
    assert first.ids[0] == first.ids[2] != first.ids[1]
    again = store.add("r", [comparison("three")])
    assert (again.added, again.duplicates, again.ids) == (first.added, first.duplicates, first.ids)
    assert [one.answer_a.text for one in everything(store)] == ["one", "two"]


def test_content_is_stored_once(store: ComparisonStore) -> None:
    first = store.add("r1", [comparison("one")])
    later = comparison("one", id="chosen by the client")
    later.create_time.GetCurrentTime()
    second = store.add("r2", [later, comparison("one", run_id="other run"), comparison("one", labeller="other person")])
    assert (second.added, second.duplicates) == (2, 1)
    assert second.ids[0] == first.ids[0]
    assert len(everything(store)) == 3


def test_contradicting_labels_are_both_kept(store: ComparisonStore) -> None:
    other = comparison("one", 0.2, outcome=types_pb2.OUTCOME_PREFERRED_B)
    assert store.add("r", [comparison("one"), other]).added == 2


@pytest.mark.parametrize(
    ("outcome", "probability", "problem"),
    [
        ("PREFERRED_A", None, "required for PREFERRED_A"),
        ("PREFERRED_B", None, "required for PREFERRED_B"),
        ("TIE", None, "required for TIE"),
        ("PREFERRED_A", 0.5, "contradicts the outcome PREFERRED_A"),
        ("PREFERRED_A", 0.49, "contradicts the outcome PREFERRED_A"),
        ("PREFERRED_B", 0.5, "contradicts the outcome PREFERRED_B"),
        ("PREFERRED_B", 0.51, "contradicts the outcome PREFERRED_B"),
        ("TIE", 0.51, "contradicts the outcome TIE"),
        # What rounding leaves of exactly opposite evidence.
        ("PREFERRED_B", 0.49999999999999994, "contradicts the outcome PREFERRED_B: it means TIE"),
        ("INVALID", 0.5, "unset for INVALID"),
        ("UNAVAILABLE", 0.9, "unset for UNAVAILABLE"),
    ],
)
def test_contradiction_names_the_item_and_stores_nothing(
    store: ComparisonStore, outcome: str, probability: float | None, problem: str
) -> None:
    bad = comparison(probability=probability, outcome=types_pb2.Outcome.Value(f"OUTCOME_{outcome}"))
    with pytest.raises(StatusError, match=rf"comparisons\[1\]: probability_a .*{problem}") as error:
        store.add("r", [comparison(), bad])
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert everything(store) == []
    # The request id is free again.
    assert store.add("r", [comparison()]).added == 1


def test_what_sql_cannot_hold_is_refused(store: ComparisonStore) -> None:
    bad = comparison()
    bad.answer_a.weight_version = 2**63
    late = comparison()
    late.create_time.seconds = 2**62
    with pytest.raises(StatusError, match=r"comparisons\[0\]\.answer_a\.weight_version.*comparisons\[1\]\.create_time"):
        store.add("r", [bad, late])


def test_pages_keep_the_order_and_end(store: ComparisonStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE_ROWS", 3)
    texts = [f"answer {number}" for number in range(8)]
    for number, text in enumerate(texts):
        store.add(f"r{number}", [comparison(text)])
    newest = store.newest()
    store.add("late", [comparison("late")])
    pages = []
    cursor = 0
    while page := store.page(EVERYTHING, cursor, newest):
        pages.append([one.answer_a.text for one in page.comparisons])
        cursor = page.cursor
    assert pages == [texts[:3], texts[3:6], texts[6:]]


def test_pages_are_bounded_in_bytes(store: ComparisonStore) -> None:
    store.add("r", [comparison(f"{number}" * 300_000) for number in range(8)])
    page = store.page(EVERYTHING, 0, store.newest())
    assert page is not None
    # 300 kB each: the page ends with the one that passes 1 MiB.
    assert len(page.comparisons) == 4
    assert len(everything(store)) == 8


def test_filters(store: ComparisonStore) -> None:
    plain, full = comparison("plain"), full_comparison()
    invalid = comparison("invalid", None, outcome=types_pb2.OUTCOME_INVALID)
    ids = store.add("r", [plain, full, invalid]).ids

    def found(**chosen: Any) -> list[str]:
        return [one.id for one in everything(store, Filter(**chosen))]

    assert found() == list(ids)
    assert found(run_id="run-1") == [ids[1]]
    assert found(source=types_pb2.LABEL_SOURCE_AI) == [ids[0], ids[2]]
    assert found(split=types_pb2.SPLIT_HELD_OUT) == [ids[1]]
    assert found(principle_id="true") == [ids[1]]
    assert found(dimension="harmless") == [ids[1]]
    assert found(labelled_only=True) == [ids[0], ids[1]]
    assert found(id=ids[2]) == [ids[2]]
    assert found(run_id="run-1", split=types_pb2.SPLIT_TRAIN) == []


def test_stats(store: ComparisonStore) -> None:
    empty = store.stats(EVERYTHING)
    assert empty.total == 0
    assert not empty.HasField("mean_probability_a")
    invalid = comparison("invalid", None, outcome=types_pb2.OUTCOME_INVALID)
    store.add("r", [comparison("one", 0.6), comparison("two", 1.0), full_comparison(), invalid])
    stats = store.stats(EVERYTHING)

    def counts(entries: Any) -> dict[str, int]:
        return {entry.value: entry.count for entry in entries}

    assert stats.total == 4
    assert counts(stats.by_outcome) == {"PREFERRED_A": 2, "INVALID": 1, "PREFERRED_B": 1}
    assert counts(stats.by_source) == {"AI": 3, "HUMAN": 1}
    assert counts(stats.by_principle) == {"kind": 1, "true": 1}
    assert counts(stats.by_split) == {"TRAIN": 3, "HELD_OUT": 1}
    assert counts(stats.by_dimension) == {"": 3, "harmless": 1}
    # By hand: labels 0.6, 1.0, 0.3.
    assert stats.mean_probability_a == pytest.approx(1.9 / 3)
    assert stats.std_probability_a == pytest.approx(0.2867441755680875)
    ai = store.stats(Filter(source=types_pb2.LABEL_SOURCE_AI, labelled_only=True))
    assert ai.total == 2
    assert ai.mean_probability_a == pytest.approx(0.8)


def test_a_labeller_takes_back_only_their_own(store: ComparisonStore) -> None:
    human = {"source": types_pb2.LABEL_SOURCE_HUMAN}
    mine, theirs = comparison("a", labeller="ann", **human), comparison("b", labeller="ben", **human)
    ids = store.add("r", [mine, theirs]).ids
    assert store.remove([*ids, "unknown"], "HUMAN", "ann") == 1
    assert store.remove(ids, "HUMAN", "ann") == 0
    assert store.remove(ids, "AI", "ben") == 0
    assert [one.labeller for one in everything(store)] == ["ben"]
    assert store.stats(EVERYTHING).total == 1


def test_what_was_taken_back_can_be_said_again_and_no_cursor_misses_it(store: ComparisonStore) -> None:
    one = comparison("a", labeller="ann", source=types_pb2.LABEL_SOURCE_HUMAN)
    ids = store.add("first", [one]).ids
    cursor = store.newest()
    store.remove(ids, "HUMAN", "ann")
    assert store.add("first", [one]).repeated
    assert everything(store) == []
    assert store.add("second", [one]).ids == ids
    page = store.page(EVERYTHING, cursor, store.newest())
    assert page is not None
    assert [found.id for found in page.comparisons] == list(ids)


def test_writers_at_once_lose_nothing(store: ComparisonStore) -> None:
    def write(writer: int) -> int:
        return sum(
            store.add(f"{writer}-{number}", [comparison(f"shared {number}"), comparison(f"{writer} {number}")]).added
            for number in range(10)
        )

    with ThreadPoolExecutor(6) as pool:
        added = sum(pool.map(write, range(6)))
    assert added == 6 * 10 + 10
    assert len(everything(store)) == added


def test_same_request_at_once_is_answered_once(store: ComparisonStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: store.add("same", [comparison(f"{number}")]).ids, range(6)))
    assert len(set(answers)) == 1
    assert len(everything(store)) == 1

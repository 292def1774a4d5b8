"""The store of runs, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from charter.spec.defaults import fill_defaults
from charter.storage.database import DatabaseError, alembic_config, open_database, version
from charter.trainer.runs import RunStateError, RunStore, StaleReportError, State, UnknownRunError, to_proto
from charter.trainer.tables import SCHEMA, Base, RunRow
from charter.v1 import run_pb2


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    url = f"sqlite:///{tmp_path}/t.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    engine = open_database(url, SCHEMA)
    yield engine
    engine.dispose()


@pytest.fixture
def store(database: sa.Engine) -> RunStore:
    return RunStore(database, Path("/runs"))


def spec(name: str = "demo", policy: str = "host:1") -> run_pb2.RunSpec:
    services = run_pb2.ServiceAddresses(policy=[policy])
    return fill_defaults(run_pb2.RunSpec(name=name, policy=run_pb2.PolicySpec(model="m"), services=services))


def event(sequence: int, text: str = "") -> run_pb2.RunEvent:
    return run_pb2.RunEvent(sequence=sequence, phase=run_pb2.PHASE_PPO, step=sequence, text=text)


def test_tables_are_what_the_migrations_make(database: sa.Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": SCHEMA.version_table})
        assert compare_metadata(context, Base.metadata) == []


def test_a_run_is_stored_whole(store: RunStore) -> None:
    row, new = store.create("r1", spec())
    run = to_proto(store.find(row.id))
    assert new
    assert run.spec == spec()
    assert run.state == run_pb2.RUN_STATE_PENDING
    assert run.artifacts == f"/runs/{run.id}"
    assert run.id.startswith("demo-")
    assert run.HasField("create_time")
    assert not run.HasField("start_time")
    assert not run.HasField("last_event")


def files(inputs: Path) -> run_pb2.RunSpec:
    """A spec that names the trainer's copies of a client's files, and a file of the client's own."""
    found = spec()
    found.prompts.train[:] = [str(inputs / "0123456789abcdef" / "train.jsonl"), "/own/train.jsonl"]
    found.judge.constitution = str(inputs / "fedcba9876543210" / "constitution.yaml")
    return found


@pytest.mark.parametrize("as_it_once_was", [False, True])
def test_a_moved_folder_is_found_with_all_that_lies_in_it(
    database: sa.Engine, tmp_path: Path, as_it_once_was: bool
) -> None:
    """Also by rows that name the folder in full, as they once did, once its runs are in the new place."""
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("0123456789abcdef/train.jsonl", "fedcba9876543210/constitution.yaml"):
        (old / "inputs" / name).parent.mkdir(parents=True)
        (old / "inputs" / name).touch()
    row, _ = RunStore(database, old).create("r1", files(old / "inputs"))
    assert Path(row.artifacts) == old / row.id
    assert to_proto(row).spec == files(old / "inputs")
    (old / row.id).mkdir()
    with database.begin() as connection:
        (stored,) = connection.execute(sa.select(RunRow.artifacts, RunRow.spec)).all()
        assert str(tmp_path) not in stored.artifacts + stored.spec
        if as_it_once_was:
            connection.execute(sa.update(RunRow).values(artifacts=row.artifacts, spec=row.spec))
    old.rename(new)
    store = RunStore(database, new)
    store.adopt()
    found = store.find(row.id)
    assert Path(found.artifacts) == new / row.id
    assert to_proto(found).spec == files(new / "inputs")


def test_a_run_that_lies_elsewhere_stays_there(database: sa.Engine, tmp_path: Path) -> None:
    store = RunStore(database, tmp_path)
    row, _ = store.create("r1", spec())
    with database.begin() as connection:
        connection.execute(sa.update(RunRow).values(artifacts="/elsewhere/of-old"))
    store.adopt()
    assert store.find(row.id).artifacts == "/elsewhere/of-old"


def test_creating_twice_with_one_request_id_creates_one_run(store: RunStore) -> None:
    first, _ = store.create("r1", spec())
    second, new = store.create("r1", spec())
    assert not new
    assert second.id == first.id
    assert len(store.page(10)) == 1


def test_times_come_back_as_utc(store: RunStore) -> None:
    row, _ = store.create("r1", spec())
    stored = to_proto(store.find(row.id)).create_time.ToMicroseconds()
    assert stored == int(row.create_time.timestamp() * 1e6)


def test_a_name_means_the_newest_run_and_an_id_comes_first(store: RunStore) -> None:
    store.create("r1", spec("demo", "host:1"))
    newest, _ = store.create("r2", spec("demo", "host:2"))
    # A run may be named as another's id.
    namesake, _ = store.create("r3", spec(newest.id, "host:3"))
    assert store.find("demo").id == newest.id
    assert store.find(newest.id).number == newest.number
    assert store.find(namesake.id).number == namesake.number
    with pytest.raises(UnknownRunError, match="nobody"):
        store.find("nobody")


def test_pages_are_newest_first_and_without_overlap(store: RunStore) -> None:
    numbers = [store.create(f"r{i}", spec(policy=f"host:{i}"))[0].number for i in range(5)]
    first = store.page(2)
    second = store.page(2, before=first[-1].number)
    assert [row.number for row in (*first, *second)] == numbers[:0:-1]


def test_an_attempt_begins_only_from_the_allowed_states(store: RunStore) -> None:
    row, _ = store.create("r1", spec())
    assert store.begin_attempt(row.id, [State.PENDING]).attempts == 1
    with pytest.raises(RunStateError, match="is RUNNING, not FAILED or CANCELLED"):
        store.begin_attempt(row.id, [State.FAILED, State.CANCELLED])
    store.request_cancel(row.id)
    assert store.end(row.id, 1, State.FAILED, "it broke") is not None
    again = store.begin_attempt(row.id, [State.FAILED])
    assert (again.attempts, again.error, again.end_time, again.cancel_requested) == (2, "", None, False)


def test_of_many_that_resume_at_once_one_wins(store: RunStore, database: sa.Engine) -> None:
    row, _ = store.create("r1", spec())
    store.begin_attempt(row.id, [State.PENDING])
    store.end(row.id, 1, State.FAILED)

    # PostgreSQL may be shared by two trainers, as while one replaces the other; a SQLite file has one.
    stores = [RunStore(database, Path("/runs")) if database.dialect.name == "postgresql" else store for _ in range(8)]

    def resume(one: RunStore) -> bool:
        try:
            one.begin_attempt(row.id, [State.FAILED])
        except RunStateError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(resume, stores)) == 1
    assert store.find(row.id).attempts == 2


def test_two_runs_do_not_share_a_policy_service(store: RunStore) -> None:
    first, _ = store.create("r1", spec())
    with pytest.raises(RunStateError, match=first.id):
        store.create("r2", spec("other"))
    store.end(first.id, 0, State.FAILED)
    second, _ = store.create("r2", spec("other"))
    with pytest.raises(RunStateError, match=second.id):
        store.begin_attempt(first.id, [State.FAILED])


def test_runs_that_only_learn_from_files_need_no_policy_service(store: RunStore) -> None:
    learning = spec("learning")
    learning.supervised.data.add(source="chat.jsonl")
    store.create("r1", learning)
    store.create("r2", learning)
    aligned, _ = store.create("r3", spec())
    with pytest.raises(RunStateError, match=aligned.id):
        store.create("r4", spec("other"))
    store.create("r5", learning)


def test_events_are_stored_once_and_in_order(store: RunStore) -> None:
    row, _ = store.create("r1", spec())
    store.begin_attempt(row.id, [State.PENDING])
    store.add_events(row.id, 1, [event(2), event(1, "first")])
    store.add_events(row.id, 1, [event(1, "again"), event(3)])
    stored = store.events(row.id, 0)
    assert [(one.sequence, one.text) for one in stored] == [(1, "first"), (2, ""), (3, "")]
    assert [one.sequence for one in store.events(row.id, 2)] == [3]
    assert to_proto(store.find(row.id)).last_event == event(3)
    # A late repetition does not become the newest event.
    store.add_events(row.id, 1, [event(2)])
    assert to_proto(store.find(row.id)).last_event == event(3)


def test_only_the_current_attempt_may_report(store: RunStore) -> None:
    row, _ = store.create("r1", spec())
    store.begin_attempt(row.id, [State.PENDING])
    store.end(row.id, 1, State.FAILED)
    with pytest.raises(StaleReportError, match="the run is FAILED"):
        store.add_events(row.id, 1, [event(1)])
    store.begin_attempt(row.id, [State.FAILED])
    with pytest.raises(StaleReportError, match="attempt 2"):
        store.add_events(row.id, 1, [event(1)])
    assert store.events(row.id, 0) == []
    assert store.end(row.id, 1, State.FAILED) is None
    assert store.find(row.id).state == State.RUNNING


def test_a_run_that_has_ended_cannot_be_cancelled(store: RunStore) -> None:
    row, _ = store.create("r1", spec())
    store.begin_attempt(row.id, [State.PENDING])
    store.end(row.id, 1, State.SUCCEEDED)
    with pytest.raises(RunStateError, match="it is SUCCEEDED"):
        store.request_cancel(row.id)


def test_states_are_counted_with_zeros(store: RunStore) -> None:
    store.create("r1", spec())
    counts = store.count_by_state()
    assert counts[State.PENDING] == 1
    assert counts[State.FAILED] == 0
    assert set(counts) == set(State)
    assert [row.name for row in store.active()] == ["demo"]


def test_a_service_that_must_not_migrate_waits_for_who_does(
    database: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The tables go while it waits; it goes on when another connection has made them again."""
    url = database.url.render_as_string(hide_password=False)
    with database.begin() as connection:
        command.downgrade(alembic_config(SCHEMA, connection), "base")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(open_database, url, SCHEMA, migrate=False)
        while "waiting for `charter database migrate`" not in caplog.text:
            assert not waiting.done(), waiting.result()
        assert not sa.inspect(database).has_table("runs")
        open_database(url, SCHEMA).dispose()
        opened = waiting.result(timeout=60)
    assert sa.inspect(opened).has_table("runs")
    opened.dispose()


@pytest.mark.parametrize("migrate", [True, False])
def test_tables_of_a_newer_version_are_refused(database: sa.Engine, migrate: bool) -> None:
    with database.begin() as connection:
        connection.execute(sa.text(f"UPDATE {SCHEMA.version_table} SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="9999"):
        open_database(database.url.render_as_string(hide_password=False), SCHEMA, migrate)


def test_many_that_start_together_migrate_once(postgres_url: str) -> None:
    """The Job's pod and services on one empty PostgreSQL: nobody trips over the tables of another."""
    with ThreadPoolExecutor(6) as pool:
        migrating = [pool.submit(open_database, postgres_url, SCHEMA) for _ in range(4)]
        waiting = [pool.submit(open_database, postgres_url, SCHEMA, False) for _ in range(2)]
        engines = [one.result(timeout=60) for one in (*migrating, *waiting)]
    assert {version(engine, SCHEMA) for engine in engines} == {version(engines[0], SCHEMA)}
    for engine in engines:
        engine.dispose()

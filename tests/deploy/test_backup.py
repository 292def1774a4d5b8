"""Back up and restore as docs/kubernetes.md says, with its very commands, on a real PostgreSQL and on SQLite."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from charter.preference.store import ComparisonStore
from charter.preference.tables import SCHEMA as COMPARISONS
from charter.spec.defaults import fill_defaults
from charter.storage.database import open_database, version
from charter.trainer.runs import RunStore, to_proto
from charter.trainer.tables import SCHEMA as RUNS
from charter.v1 import preference_pb2, run_pb2, types_pb2

from tests.deploy.manifests import OVERLAYS, ROOT, containers, environment, everything
from tests.support.comparisons import comparison, full_comparison
from tests.support.postgres import Cluster

DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()


def command(program: str) -> list[str]:
    """The arguments that the document gives a program in PostgreSQL's pod."""
    (line,) = re.findall(
        rf"^ +kubectl .*exec .*postgres-0 -- {program} (.*?) [<>] charter.dump$", DOCUMENT, re.MULTILINE
    )
    return [program, *shlex.split(line)]


@pytest.fixture
def server(postgres_cluster: Cluster) -> Iterator[Cluster]:
    """A server as the component's: with an empty database `charter`."""
    on = ("-h", str(postgres_cluster.folder), "-U", "charter")
    postgres_cluster.run("createdb", *on, "charter")
    yield postgres_cluster
    postgres_cluster.run("dropdb", *on, "--if-exists", "--force", "charter")


def url(server: Cluster) -> str:
    return f"postgresql://charter@/charter?host={server.folder}"


def run(server: Cluster, arguments: list[str], **files: object) -> None:
    """As in the pod, where the programs find the server's socket by themselves."""
    done = subprocess.run(
        [server.binaries / arguments[0], *arguments[1:]],
        **server.as_user,
        **files,  # type: ignore[call-overload]
        cwd=server.folder,
        env={"PGHOST": str(server.folder), "LC_ALL": "C.UTF-8"},
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 0, done.stderr.decode()


def migrate(server: Cluster) -> str:
    """The command of the component's Job, as it stands in the manifest."""
    objects = everything(OVERLAYS[0])
    ((_, job),) = [(name, one) for name, _, one in containers(objects) if one["name"] == "migrate"]
    charter = str(Path(sys.executable).parent / "charter")
    variables = {**environment(objects, job), "CHARTER_DATABASE": url(server), "PYTHONPATH": str(ROOT / "services")}
    done = subprocess.run([charter, *job["args"]], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fill(database: str) -> None:
    """A run with an event, and two comparisons."""
    engine = open_database(database, RUNS)
    row, _ = RunStore(engine, Path("/runs")).create("r1", fill_defaults(run_pb2.RunSpec(name="demo")))
    assert row.id
    engine.dispose()
    engine = open_database(database, COMPARISONS)
    ComparisonStore(engine).add("r", [full_comparison(), comparison("No, it is dry")])
    engine.dispose()


def content(database: str) -> tuple[list[run_pb2.Run], list[types_pb2.Comparison], list[str | None]]:
    """Everything of both rooms, read as the services of this version would: without a migration."""
    runs = open_database(database, RUNS, migrate=False)
    comparisons = open_database(database, COMPARISONS, migrate=False)
    try:
        store = ComparisonStore(comparisons)
        page = store.page(preference_pb2.ComparisonFilter(), 0, store.newest())
        assert page is not None
        with runs.connect() as connection:
            names = list(connection.execute(sa.text("select id from runs order by id")).scalars())
        found = [to_proto(RunStore(runs, Path("/runs")).find(name)) for name in names]
        return found, list(page.comparisons), [version(runs, RUNS), version(comparisons, COMPARISONS)]
    finally:
        runs.dispose()
        comparisons.dispose()


def test_what_was_dumped_comes_back_and_nothing_else(server: Cluster, tmp_path: Path) -> None:
    shown = migrate(server)
    fill(url(server))
    before = content(url(server))
    assert (len(before[0]), len(before[1])) == (1, 2)
    dump = tmp_path / "charter.dump"
    with dump.open("wb") as file:
        run(server, command("pg_dump"), stdout=file)

    # Afterwards things are added, lost and changed, by a newer version too.
    fill_more = open_database(url(server), COMPARISONS)
    ComparisonStore(fill_more).add("later", [comparison("Later")])
    with fill_more.begin() as connection:
        connection.execute(sa.text("create table of_a_newer_version (id int)"))
        connection.execute(sa.text("delete from runs"))
    fill_more.dispose()
    assert content(url(server)) != before
    with dump.open("rb") as file:
        run(server, command("pg_restore"), stdin=file)
    assert content(url(server)) == before
    engine = sa.create_engine(url(server).replace("postgresql:", "postgresql+psycopg:"))
    assert "of_a_newer_version" not in sa.inspect(engine).get_table_names()
    engine.dispose()
    assert migrate(server) == shown, "there is nothing to bring up to date"

    # A server that has lost everything, and one whose database is new and empty.
    for left in ((), ("createdb",)):
        run(server, ["dropdb", "-U", "charter", "charter"])
        for program in left:
            run(server, [program, "-U", "charter", "charter"])
        with dump.open("rb") as file:
            run(server, command("pg_restore"), stdin=file)
        assert content(url(server)) == before


def test_sqlite_is_its_file_and_the_log_beside_it(tmp_path: Path) -> None:
    """The pod may have been killed: then the newest rows are in the log alone."""
    (tmp_path / "at").mkdir()
    database = f"sqlite:///{tmp_path}/at/charter.db"
    for schema in (RUNS, COMPARISONS):
        open_database(database, schema).dispose()
    reader = sa.create_engine(database)
    # A connection that is left open keeps SQLite from emptying the log.
    with reader.connect() as connection:
        connection.execute(sa.text("select * from runs"))
        fill(database)
        files = sorted((tmp_path / "at").glob("charter.db*"))
        assert (tmp_path / "at" / "charter.db-wal").stat().st_size > 0
        (tmp_path / "copy").mkdir()
        for file in files:
            if not file.name.endswith("-shm"):
                shutil.copy(file, tmp_path / "copy")
        found = content(f"sqlite:///{tmp_path}/copy/charter.db")
        assert (len(found[0]), len(found[1])) == (1, 2)
        assert found == content(database)
    reader.dispose()

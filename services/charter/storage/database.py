"""Opens a SQL database and brings its tables to the newest migration."""

from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import make_url


class DatabaseError(RuntimeError):
    """The database cannot be opened; the message says which and what to do."""


def open_database(url: str, migrations: Path, version_table: str) -> sqlalchemy.Engine:
    """Connect to ``url`` (SQLite or PostgreSQL) and upgrade the tables of one room to head.

    ``migrations`` is the room's Alembic folder; ``version_table`` is where Alembic keeps the room's version, so
    that two rooms can share a database. Raises ``DatabaseError``.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(parsed, pool_pre_ping=True)
        if engine.dialect.name == "sqlite":
            sqlalchemy.event.listen(engine, "connect", _sqlite_pragmas)
        _upgrade(engine, migrations, version_table)
    except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        # The password stays out of messages and logs.
        shown = make_url(url).render_as_string() if "://" in url else url
        raise DatabaseError(
            f"cannot open the database {shown}: {error}. Is it a URL such as sqlite:///FILE?"
        ) from error
    return engine


def _upgrade(engine: sqlalchemy.Engine, migrations: Path, version_table: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Two replicas that start together migrate one after the other.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtext('charter'))"))
        config.attributes["connection"] = connection
        config.attributes["version_table"] = version_table
        command.upgrade(config, "head")


def run_migrations() -> None:
    """Body of every room's ``migrations/env.py``: run in the connection that ``open_database`` gives."""
    from alembic import context

    context.configure(
        connection=context.config.attributes["connection"],
        version_table=context.config.attributes["version_table"],
    )
    with context.begin_transaction():
        context.run_migrations()


def _sqlite_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # Readers do not wait for the writer; a writer waits for another one instead of failing.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()

"""Opens a SQL database whose tables are at the newest migration: it brings them there, or waits until another has."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import make_url

logger = logging.getLogger("charter.storage")

# Between two looks at tables that another process migrates.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one room."""

    # Alembic's folder.
    migrations: Path
    # Where Alembic keeps the room's version, so that rooms can share a database.
    version_table: str


class DatabaseError(RuntimeError):
    """The database cannot be opened; the message says which and what to do."""


def open_database(url: str, schema: Schema, migrate: bool = True) -> sqlalchemy.Engine:
    """Connect to ``url`` (SQLite or PostgreSQL); the tables of one room are at this version when it returns.

    With ``migrate`` it upgrades them, else it waits until `charter database migrate` has. Raises ``DatabaseError``,
    for tables of a newer version too.
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
        if migrate:
            _upgrade(engine, schema)
        else:
            _wait_for_upgrade(engine, schema)
    except (sqlalchemy.exc.SQLAlchemyError, CommandError, OSError) as error:
        # The password stays out of messages and logs.
        shown = make_url(url).render_as_string() if "://" in url else url
        raise DatabaseError(f"cannot open the database {shown}: {_reason(error)}") from error
    return engine


def _reason(error: Exception) -> str:
    """What is wrong, and what to do where that is known."""
    if isinstance(error, sqlalchemy.exc.ArgumentError | sqlalchemy.exc.NoSuchModuleError):
        return f"{error}. Is it a URL such as sqlite:///FILE?"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if not isinstance(error, sqlalchemy.exc.DBAPIError):
        return str(error)
    # Without SQLAlchemy's own lines about statement and documentation.
    cause = str(error.orig).strip()
    if "not a database" in cause or "malformed" in cause:
        return f"{cause}: the file is damaged, or none of ours. Put a copy of it back, or move it away to begin anew"
    return cause


def version(engine: sqlalchemy.Engine, schema: Schema) -> str | None:
    """The migration that the tables are at; None before the first."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.version_table})
        return context.get_current_revision()


def alembic_config(schema: Schema, connection: sqlalchemy.Connection | None = None) -> Config:
    """What Alembic's commands take to work on the tables of a room, in ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(schema.migrations))
    config.attributes |= {"connection": connection, "version_table": schema.version_table}
    return config


def _wait_for_upgrade(engine: sqlalchemy.Engine, schema: Schema) -> None:
    scripts = ScriptDirectory.from_config(alembic_config(schema))
    newest = scripts.get_current_head()
    said = False
    while (found := version(engine, schema)) != newest:
        if found is not None:
            # Raises for a version that is newer than this code.
            scripts.get_revision(found)
        if not said:
            logger.warning(
                "waiting for `charter database migrate`",
                extra={"tables": schema.version_table, "found": found, "needed": newest},
            )
            said = True
        time.sleep(_LOOK_SECONDS)


def _upgrade(engine: sqlalchemy.Engine, schema: Schema) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Two replicas that start together migrate one after the other.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtext('charter'))"))
        command.upgrade(alembic_config(schema, connection), "head")


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

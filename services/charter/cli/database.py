"""`charter database`: the tables of trainer and preference service."""

from typing import Annotated

import typer

from charter.cli.output import JsonOption, console, emit_json, fail
from charter.cli.services import home

DatabaseOption = Annotated[
    str, typer.Option(envvar="CHARTER_DATABASE", help="SQLAlchemy URL. Default: charter.db in CHARTER_HOME.")
]


def default_database() -> str:
    """URL of the database where none is named."""
    return f"sqlite:///{home() / 'charter.db'}"


def migrate(database: DatabaseOption = "", as_json: JsonOption = False) -> None:
    """Bring the tables to this version.

    Services do it when they start, unless CHARTER_MIGRATE=0 makes them wait for this command: in a cluster it is a Job.
    Repeating it changes nothing. Tables of a newer version are refused.
    """
    # Here, not at the top: other commands start without SQLAlchemy.
    from charter.preference.tables import SCHEMA as PREFERENCE
    from charter.storage.database import DatabaseError, open_database, version
    from charter.trainer.tables import SCHEMA as TRAINER

    found = {}
    try:
        for name, schema in (("trainer", TRAINER), ("preference", PREFERENCE)):
            engine = open_database(database or default_database(), schema)
            found[name] = version(engine, schema)
            engine.dispose()
    except DatabaseError as error:
        fail(error)
    if as_json:
        emit_json(found)
    else:
        for name, at in found.items():
            console.print(f"{name}: {at}")

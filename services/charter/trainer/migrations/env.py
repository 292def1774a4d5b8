"""Alembic runs this file; the connection comes from ``open_database``."""

from charter.storage.database import run_migrations

run_migrations()

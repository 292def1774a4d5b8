"""A real PostgreSQL for tests: a temporary cluster on a Unix socket, and a fresh database for each test."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

_ROLE = "charter"


@dataclass(frozen=True)
class Cluster:
    """A running PostgreSQL server; its socket lies in ``folder``."""

    binaries: Path
    folder: Path
    as_user: dict[str, Any]
    numbers: "count[int]"

    def run(self, program: str, *arguments: str) -> None:
        """Run a PostgreSQL program as the user that owns the cluster."""
        done = subprocess.run(
            [self.binaries / program, *arguments],
            **self.as_user,
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stdout}")

    def new_database(self) -> str:
        """SQLAlchemy URL of an empty database."""
        name = f"test{next(self.numbers)}"
        self.run("createdb", "-h", str(self.folder), "-U", _ROLE, name)
        return f"postgresql+psycopg://{_ROLE}@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    """A PostgreSQL server that lives as long as the test session. Skips when none is installed."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server found (initdb): install Debian's `postgresql`, or put its bin folder on PATH")
    with running_cluster(binaries) as cluster:
        yield cluster


@contextmanager
def running_cluster(binaries: Path) -> Iterator[Cluster]:
    """A new PostgreSQL server in a temporary folder."""
    # A socket's path may hold 107 bytes, so pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="charter-postgres-", dir="/tmp"))
    cluster = Cluster(binaries, folder, _owner(folder), count())
    try:
        data = str(folder / "data")
        cluster.run("initdb", "-D", data, "-U", _ROLE, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=50"
        cluster.run("pg_ctl", "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
        try:
            yield cluster
        finally:
            cluster.run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres_cluster: Cluster) -> str:
    """SQLAlchemy URL of a fresh, empty PostgreSQL database."""
    return postgres_cluster.new_database()


def find_binaries() -> Path | None:
    """Folder of initdb and pg_ctl: on PATH, or the newest that Debian installed."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return installed[-1].parent if installed else None


def _owner(folder: Path) -> dict[str, Any]:
    """How to run the programs: PostgreSQL refuses root, so root hands the folder to another user."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

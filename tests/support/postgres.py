"""A PostgreSQL server of one's own: a new cluster in a temporary folder, reached by a socket there.

Its programs refuse to run as root, so under root they run as `postgres` or `nobody`. Nothing
listens on a network port.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

_USER = "taciturn"
_TIMEOUT_S = 240


class NoPostgresError(RuntimeError):
    """PostgreSQL's server is not installed here."""


@dataclass(frozen=True)
class PostgresServer:
    """A running server."""

    folder: Path

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of one of its databases."""
        return f"postgresql+psycopg://{_USER}@/{database}?host={self.folder}"

    def create(self, database: str, template: str = "template0") -> str:
        """A new database, empty or a copy of another one; returns its URL."""
        self.execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def execute(self, statement: str) -> list[Any]:
        """Run a statement outside of any transaction, as the server's owner."""
        with psycopg.connect(
            host=str(self.folder), user=_USER, dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []


@contextmanager
def postgres(*, durable: bool = False) -> Iterator[PostgresServer]:
    """Start a cluster, and remove it in the end.

    Args:
        durable: wait for the disk, as a server must that survives the loss of power; without, it
            only survives what happens to its processes.

    Raises:
        NoPostgresError: there is no server program.
    """
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="taciturn-pg-"))
    try:
        runner = _Runner(programs, _owner(folder))
        data = folder / "data"
        runner.run("initdb", "--no-sync", "-E", "UTF8", "-A", "trust", "-U", _USER, "-D", str(data))
        settings = {
            "listen_addresses": "''",
            "unix_socket_directories": f"'{folder}'",
            "max_connections": "300",
            "shared_buffers": "64MB",
            "fsync": "on" if durable else "off",
            "restart_after_crash": "on",
        }
        with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        runner.run("pg_ctl", "-D", str(data), "-l", str(folder / "log"), "-w", "start")
        try:
            yield PostgresServer(folder)
        finally:
            runner.run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Runner:
    programs: Path
    user: str | None

    def run(self, program: str, *arguments: str) -> None:
        as_user: dict[str, Any] = {}
        if self.user is not None:
            group = pwd.getpwnam(self.user).pw_gid
            as_user = {"user": self.user, "group": group, "extra_groups": []}
        result = subprocess.run(
            [self.programs / program, *arguments],
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would stay open as long as the server runs
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
            **as_user,
        )
        if result.returncode:
            raise RuntimeError(f"{program} ended with code {result.returncode}")


def _programs() -> Path:
    initdb = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if initdb is None and not versions:
        raise NoPostgresError("PostgreSQL's server is not installed (Debian: postgresql)")
    return Path(initdb).resolve().parent if initdb else versions[-1].parent


def _owner(folder: Path) -> str | None:
    """The user that the server runs as, who is given the folder; None: whoever we are."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    user = next(name for name in ("postgres", "nobody") if name in users)
    shutil.chown(folder, user)
    folder.chmod(0o711)  # others reach the socket, and list nothing
    return user

"""New databases to measure on, which wait for the disk as in production."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support.postgres import NoPostgresError, postgres
from taciturn.server.database import open_database
from taciturn.server.schema import versions

KINDS = ("SQLite", "PostgreSQL")


@contextmanager
def database(kind: str) -> Iterator[str]:
    """Return the URL of a new database with the gateway's tables."""
    if kind == "SQLite":
        with tempfile.TemporaryDirectory() as folder:
            yield _migrated(f"sqlite:///{Path(folder) / 'server.db'}")
    else:
        with postgres(durable=True) as server:
            yield _migrated(server.create("server"))


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with `--quick`, `--seed` and `--only`."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--only", choices=KINDS)
    return made


def run_on_each(run: Callable[[str], bool], only: str | None) -> None:
    """Run on both databases, or on one; ends the program with 1 if a run returned False."""
    fine = True
    for kind in KINDS if only is None else (only,):
        try:
            fine &= run(kind)
        except NoPostgresError as error:
            print(f"{kind}: not measured, {error}")
    sys.exit(0 if fine else 1)


def _migrated(url: str) -> str:
    engine = open_database(url)
    versions.upgrade(engine)
    engine.dispose()
    return url

"""The DuckDB that reads private rows reaches nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from taciturn.data.sql.session import TABLE, LockedSession

ROWS = pa.table({"a": [1, 2]})


def test_it_sees_the_rows_it_is_given() -> None:
    with LockedSession() as session:
        assert session.run(f"SELECT a + 1 AS b FROM {TABLE}", ROWS).to_pydict() == {"b": [2, 3]}
        assert '"SELECT_NODE"' in session.serialized("SELECT 1")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM '{folder}/a.csv'",
        "SELECT * FROM read_csv('{folder}/a.csv')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('{folder}/*')",
        "COPY (SELECT 1) TO '{folder}/b.csv'",
        "EXPORT DATABASE '{folder}/d'",
        "ATTACH '{folder}/c.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET threads = 64",
        "SELECT * FROM ROWS",
        "SELECT * FROM statement",
    ],
)
def test_nothing_else_can_be_reached(tmp_path: Path, statement: str) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    with LockedSession() as session, pytest.raises(duckdb.Error):
        session.run(statement.format(folder=tmp_path), ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_statement_that_runs_on_is_interrupted() -> None:
    started = time.monotonic()
    endless = f"SELECT count(*) FROM {TABLE}, range(100000000) a, range(100000000) b"
    with LockedSession() as session:
        with pytest.raises(duckdb.InterruptException):
            session.run(endless, ROWS, limit_s=0.2)
        assert session.run(f"SELECT a FROM {TABLE}", ROWS).num_rows == 2
    assert time.monotonic() - started < 10

"""A table of a real PostgreSQL server as a stream of rows."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pyarrow as pa
import pytest

from support.postgres import NoPostgresError, PostgresServer, postgres
from taciturn.data.database import Table, TableIdentity, identity, is_table
from taciturn.data.rows import ROWS_PER_BATCH
from taciturn.data.source import open_rows
from taciturn.errors import DataError, DataNotFoundError

ODD = 'we"ird; DROP TABLE notes; --'
_TABLES = f"""
    CREATE TABLE notes (
        id bigint, "Patient" varchar(20), text text, score numeric(30, 20), weight real,
        seen date, at timestamptz, data jsonb, ok boolean, tags text[]
    );
    INSERT INTO notes SELECT i, 'p' || i % 7, 'Note ' || i, 1.00000000000000000001, 0.5,
        '2020-01-02', '2020-01-02 03:04:05+00', jsonb_build_object('k', i), true, ARRAY['a', 'b']
        FROM generate_series(1, 5000) AS i;
    INSERT INTO notes (id) VALUES (5001);
    CREATE SCHEMA ward;
    CREATE TABLE ward.empty (id integer, text text);
    CREATE TABLE "{ODD.replace('"', '""')}" (text text);
    INSERT INTO "{ODD.replace('"', '""')}" VALUES ('x');
    CREATE TABLE copied AS SELECT * FROM notes ORDER BY id DESC;
    CREATE VIEW ward.shown AS SELECT text AS note, true AS "taciturn row" FROM notes WHERE id > 3;
    CREATE VIEW twice AS SELECT note FROM ward.shown;
    CREATE TABLE years (id integer, year integer) PARTITION BY LIST (year);
    CREATE TABLE years_1 PARTITION OF years FOR VALUES IN (1);
    CREATE TABLE years_2 PARTITION OF years FOR VALUES IN (2);
    CREATE SCHEMA gateway;
    CREATE TABLE gateway.ledger_accounts (id integer);
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresServer]:
    try:
        with postgres() as running:
            running.create("hospital")
            with psycopg.connect(
                host=str(running.folder), user="taciturn", dbname="hospital", autocommit=True
            ) as connection:
                connection.execute(_TABLES)  # type: ignore[arg-type]
            yield running
    except NoPostgresError as error:
        pytest.skip(str(error))


@pytest.fixture
def database(cluster: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without a user: that is the reader's own, from libpq's variables."""
    monkeypatch.setenv("PGUSER", "taciturn")
    return f"postgresql+psycopg:///hospital?host={cluster.folder}"


def read(location: str) -> pa.Table:
    rows = open_rows(location, empty=True)
    return pa.Table.from_batches(list(rows.batches), rows.schema)


def test_table_is_read_in_batches(database: str) -> None:
    rows = open_rows(f"{database}#notes")
    sizes = [batch.num_rows for batch in rows.batches]
    assert sum(sizes) == 5001
    assert max(sizes) <= ROWS_PER_BATCH
    assert len(sizes) > 1


def test_values_keep_what_they_say(database: str) -> None:
    first = read(f"{database}#notes").slice(0, 1).to_pylist()[0]
    assert first["id"] == 1
    assert first["Patient"] == "p1"
    assert first["score"] == "1.00000000000000000001"
    assert first["data"] == '{"k": 1}'
    assert first["ok"] is True
    assert str(first["seen"]) == "2020-01-02"


def test_nulls_stay_null(database: str) -> None:
    last = read(f"{database}#notes").filter(pa.compute.field("id") == 5001).to_pylist()[0]
    assert {value for name, value in last.items() if name != "id"} == {None}


def test_table_of_a_schema_without_rows(database: str) -> None:
    found = read(f"{database}#ward.empty")
    assert found.num_rows == 0
    assert found.schema.names == ["id", "text"]


def test_names_are_quoted(database: str) -> None:
    assert read(f"{database}#{ODD}").num_rows == 1
    assert read(f"{database}#notes").num_rows == 5001


@pytest.mark.parametrize("table", ["nothing", "notes; DROP TABLE notes", "pg_catalog.nothing"])
def test_no_such_table(database: str, table: str) -> None:
    with pytest.raises(DataNotFoundError):
        open_rows(f"{database}#{table}")


def test_a_table_must_be_named(database: str) -> None:
    with pytest.raises(DataError, match="names no table"):
        open_rows(database)


def test_no_message_holds_a_password(cluster: PostgresServer) -> None:
    location = f"postgresql+psycopg://ada:s3cret@/nowhere?host={cluster.folder}&password=s3cret#x"
    with pytest.raises(DataNotFoundError) as caught:
        open_rows(location)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_the_transaction_is_read_only(database: str, cluster: PostgresServer) -> None:
    """A view whose function writes fails to be read."""
    with psycopg.connect(
        host=str(cluster.folder), user="taciturn", dbname="hospital", autocommit=True
    ) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION spy() RETURNS text LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO notes (id) VALUES (0); RETURN 'x'; END $$"
        )
        connection.execute("CREATE OR REPLACE VIEW spying AS SELECT spy() AS text")
    with pytest.raises(DataNotFoundError):
        read(f"{database}#spying")
    assert read(f"{database}#notes").num_rows == 5001


def test_other_urls_are_files() -> None:
    assert not is_table("s3://bucket/notes.parquet")
    assert not is_table("postgresql")
    assert is_table("postgresql+psycopg://host/db#notes")


def known_as(database: str, table: str) -> TableIdentity:
    return identity(Table(f"{database}#{table}"))


def test_a_table_is_known_whatever_leads_to_it(database: str) -> None:
    """Its views, and views of these; a partitioned table's parts, which know nothing of others."""
    notes = set(known_as(database, "notes").relations)
    assert len(notes) == 1
    assert set(known_as(database, "public.notes").relations) == notes
    assert notes < set(known_as(database, "ward.shown").relations)
    assert notes < set(known_as(database, "twice").relations)
    whole = set(known_as(database, "years").relations)
    first, second = (set(known_as(database, f"years_{year}").relations) for year in (1, 2))
    assert first | second < whole
    assert not first & second
    assert not whole & notes
    assert known_as(database, ODD).relations


def test_a_copy_of_a_table_has_the_same_rows_in_any_order(database: str) -> None:
    notes, copied = known_as(database, "notes"), known_as(database, "copied")
    assert notes.rows == copied.rows is not None
    assert not set(notes.relations) & set(copied.relations)
    assert known_as(database, "ward.shown").rows not in (None, notes.rows)
    assert known_as(database, "ward.empty").rows is None


def test_the_database_of_a_gateway_is_known(cluster: PostgresServer, database: str) -> None:
    assert not known_as(database, "notes").of_a_gateway
    with psycopg.connect(
        host=str(cluster.folder), user="taciturn", dbname="hospital", autocommit=True
    ) as connection:
        connection.execute("CREATE TABLE gateway.ledger_entries (id integer)")
        found = known_as(database, "notes")
        connection.execute("DROP TABLE gateway.ledger_entries")
    assert found.of_a_gateway
    assert found.rows is None


def test_an_identity_says_nothing_of_rows_where_it_fails(database: str) -> None:
    with pytest.raises(DataNotFoundError, match="cannot be read"):
        known_as(database, "absent")

"""One table of a PostgreSQL database as a stream of rows, read and nothing else.

    postgresql+psycopg://HOST/DATABASE#TABLE        or #SCHEMA.TABLE

User and password are not part of it: they are what the reading process has, by libpq's own means
(PGUSER, PGPASSWORD, PGSERVICE, ~/.pgpass).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from taciturn.errors import DataError, DataNotFoundError, MissingDependencyError, TaciturnError
from taciturn.preparation.rows import ROWS_PER_BATCH, Rows, shield, shielded

_SCHEMES = ("postgresql", "postgresql+psycopg")
_PLAIN: dict[str, pa.DataType] = {
    "BIGINT": pa.int64(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "DOUBLE PRECISION": pa.float64(),
    "INTEGER": pa.int64(),
    "REAL": pa.float64(),
    "SMALLINT": pa.int64(),
    "TEXT": pa.string(),
    "UUID": pa.string(),
    "VARCHAR": pa.string(),
}
"""Types that Arrow has, too. Everything else is read as text, by PostgreSQL's own cast: JSON as
JSON, a number of arbitrary precision with all its digits."""


def is_table(location: str) -> bool:
    """Whether `location` names a table, not files."""
    return location.partition("://")[0] in _SCHEMES and "://" in location


def read_table(location: str) -> tuple[Rows, str]:
    """The rows of the table, and what messages call it: without anything that could be a secret.

    One read-only transaction that sees one state of the database, through a server-side cursor.

    Raises DataNotFoundError if database or table cannot be reached, DataError if it names none.
    """
    try:
        parts = urlsplit(location)
    except ValueError:
        raise DataNotFoundError(
            "the URL of the table has brackets where its host should be; write the host out"
        ) from None
    shown = f"'{parts.scheme}://{parts.hostname or ''}{parts.path}#{parts.fragment}'"
    if not parts.fragment:
        raise DataError(f"{shown} names no table; write it behind #, as in #notes or #ward.notes")
    sql = _sqlalchemy(shown)

    def failed(kind: str) -> TaciturnError:
        return DataNotFoundError(
            f"{shown} cannot be read ({kind}); check host, database, table and the credentials of "
            "whoever reads: PGUSER, PGPASSWORD, ~/.pgpass"
        )

    url = f"postgresql+psycopg://{location.partition('://')[2].partition('#')[0]}"
    engine = shield(lambda: sql.create_engine(url, poolclass=sql.NullPool), failed)
    schema, _, name = parts.fragment.rpartition(".")
    columns = shield(lambda: sql.inspect(engine).get_columns(name, schema or None), failed)
    fields = [pa.field(each["name"], _arrow_type(each["type"])) for each in columns]
    table = sql.table(name, *(sql.column(each["name"]) for each in columns), schema=schema or None)
    query = sql.select(*(_read_as(sql, table, field) for field in fields))
    arrow = pa.schema(fields)
    return Rows(arrow, shielded(_batches(engine, query, arrow), failed)), shown


def _sqlalchemy(shown: str) -> Any:
    try:
        import psycopg  # noqa: F401
        import sqlalchemy
    except ImportError:
        raise MissingDependencyError(
            f"{shown} needs packages that are not installed; run: pip install 'taciturn[server]'"
        ) from None
    return sqlalchemy


def _arrow_type(kind: object) -> pa.DataType:
    return _PLAIN.get(str(kind).partition("(")[0], pa.string())


def _read_as(sql: Any, table: Any, field: pa.Field) -> Any:
    column = table.c[field.name]
    as_text = pa.types.is_string(field.type)
    return sql.cast(column, sql.Text).label(field.name) if as_text else column


def _batches(engine: Any, query: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    options = {
        "isolation_level": "REPEATABLE READ",
        "postgresql_readonly": True,
        "yield_per": ROWS_PER_BATCH // 8,
    }
    with engine.connect().execution_options(**options) as connection:
        for part in connection.execute(query).partitions():
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*part, strict=True), schema, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

"""One table of a PostgreSQL database as a stream of rows, read and nothing else.

    postgresql+psycopg://HOST/DATABASE#TABLE        or #SCHEMA.TABLE

User and password are not part of it: they are what the reading process has, by libpq's own means
(PGUSER, PGPASSWORD, PGSERVICE, ~/.pgpass).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pyarrow as pa

from taciturn.data.rows import ROWS_PER_BATCH, Rows, shield, shielded
from taciturn.errors import DataError, DataNotFoundError, MissingDependencyError, TaciturnError

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
    """True if `location` names a table, not files."""
    return location.partition("://")[0] in _SCHEMES and "://" in location


@dataclass(frozen=True, slots=True)
class Table:
    """A table, and who is asked for it.

    Attributes:
        location: its URL.
        addresses: of its host, where they are known; by default its name is looked up.
    """

    location: str
    addresses: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of the table in messages: without anything that could be a secret."""
        parts = self._parts
        return f"'{parts.scheme}://{parts.hostname or ''}{parts.path}#{parts.fragment}'"

    @property
    def schema(self) -> str | None:
        """Schema of the database; None for the first of the reader's that has the table."""
        return self._parts.fragment.rpartition(".")[0] or None

    @property
    def name(self) -> str:
        """Within the schema; raises DataError if the URL names none."""
        if not self._parts.fragment:
            raise DataError(
                f"{self.label} names no table; write it behind #, as in #notes or #ward.notes"
            )
        return self._parts.fragment.rpartition(".")[2]

    @property
    def _parts(self) -> SplitResult:
        try:
            return urlsplit(self.location)
        except ValueError:
            raise DataNotFoundError(
                "the URL of the table has brackets where its host should be; write the host out"
            ) from None

    def failed(self, kind: str) -> TaciturnError:
        """Error that it cannot be read."""
        return DataNotFoundError(
            f"{self.label} cannot be read ({kind}); check host, database, table and the "
            "credentials of whoever reads: PGUSER, PGPASSWORD, ~/.pgpass"
        )

    def engine(self) -> tuple[Any, Any]:
        """SQLAlchemy, and its engine of the database; connects when first used."""
        sql = _sqlalchemy(self.label)
        url = f"postgresql+psycopg://{self.location.partition('://')[2].partition('#')[0]}"
        connect_args: dict[str, str] = {}
        if self.addresses:
            host = self._parts.hostname or ""
            connect_args["host"] = ",".join([host] * len(self.addresses))
            connect_args["hostaddr"] = ",".join(self.addresses)
        return sql, shield(
            lambda: sql.create_engine(url, poolclass=sql.NullPool, connect_args=connect_args),
            self.failed,
        )


def read_table(source: Table) -> tuple[Rows, str]:
    """The rows of the table, and what messages call it.

    One read-only transaction that sees one state of the database, through a server-side cursor.

    Raises DataNotFoundError if database or table cannot be reached, DataError if it names none.
    """
    name, schema = source.name, source.schema
    sql, engine = source.engine()
    columns = shield(lambda: sql.inspect(engine).get_columns(name, schema), source.failed)
    fields = [pa.field(column["name"], _arrow_type(column["type"])) for column in columns]
    table = sql.table(name, *(sql.column(column["name"]) for column in columns), schema=schema)
    query = sql.select(*(_read_as(sql, table, field) for field in fields))
    arrow = pa.schema(fields)
    return Rows(arrow, shielded(_batches(engine, query, arrow), source.failed)), source.label


@dataclass(frozen=True, slots=True)
class TableIdentity:
    """Identity of a table, whatever it is called.

    Attributes:
        relations: (server, database, OID) of the table and of all that its rows come from: what
            a view reads, the parts of a partitioned table.
        rows: of what is in it, in no order: how many rows, and a sum of their hashes; None if
            there is none.
        of_a_gateway: the database is that of a gateway like ours.
    """

    relations: tuple[tuple[str, str, int], ...]
    rows: tuple[int, str] | None
    of_a_gateway: bool


_SERVER = "SELECT system_identifier::text FROM pg_control_system()"
_DATABASE = "SELECT oid::text FROM pg_database WHERE datname = current_database()"
_GATEWAY = (
    "SELECT count(DISTINCT relname) = 2 FROM pg_class "
    "WHERE relkind = 'r' AND relname IN ('ledger_accounts', 'ledger_entries')"
)
_RELATIONS = """
    WITH RECURSIVE reached(oid) AS (
        SELECT CAST(CAST(:name AS regclass) AS oid)
        UNION
        SELECT found.oid FROM reached CROSS JOIN LATERAL (
            SELECT depends.refobjid AS oid
            FROM pg_rewrite AS rule JOIN pg_depend AS depends ON depends.objid = rule.oid
            WHERE rule.ev_class = reached.oid
                AND depends.classid = 'pg_rewrite'::regclass
                AND depends.refclassid = 'pg_class'::regclass
            UNION ALL
            SELECT inhrelid FROM pg_inherits WHERE inhparent = reached.oid
        ) AS found
    )
    SELECT oid::bigint FROM reached ORDER BY oid
"""


def identity(source: Table) -> TableIdentity:
    """Ask the database which table it is; raises as `read_table` does."""
    name, schema = source.name, source.schema
    sql, engine = source.engine()
    quoted = engine.dialect.identifier_preparer.quote_identifier
    table = ".".join(quoted(part) for part in (schema, name) if part)

    def ask() -> TableIdentity:
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with engine.connect().execution_options(**options) as connection:
            server = connection.scalar(sql.text(_SERVER))
            database = connection.scalar(sql.text(_DATABASE))
            oids = connection.execute(sql.text(_RELATIONS), {"name": table}).scalars()
            relations = tuple((str(server), str(database), int(oid)) for oid in oids)
            of_a_gateway = bool(connection.scalar(sql.text(_GATEWAY)))
            rows = (
                None if of_a_gateway else _content(sql, connection, sql.table(name, schema=schema))
            )
            return TableIdentity(relations, rows, of_a_gateway)

    return shield(ask, source.failed)


def _content(sql: Any, connection: Any, table: Any) -> tuple[int, str] | None:
    """Count and checksum, computed where the rows are. The name of a whole row must be none that a
    column could have by accident."""
    rows = table.alias("taciturn row")
    text = sql.cast(sql.literal_column('"taciturn row"'), sql.Text)
    total = sql.func.sum(sql.cast(sql.func.hashtextextended(text, 0), sql.Numeric))
    query = sql.select(sql.func.count(), sql.cast(total, sql.Text)).select_from(rows)
    count, checksum = connection.execute(query).one()
    return (int(count), str(checksum)) if count else None


def _sqlalchemy(label: str) -> Any:
    try:
        import psycopg  # noqa: F401
        import sqlalchemy
    except ImportError:
        raise MissingDependencyError(
            f"{label} needs packages that are not installed; run: pip install 'taciturn[server]'"
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

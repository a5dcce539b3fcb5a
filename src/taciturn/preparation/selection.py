"""Runs `select` and `privacy_unit`: row-wise SQL over the stream of rows, in a locked DuckDB.

Two locks stand before a row is read: sqlglot checks the text (`expression.py`), then DuckDB's own
reading of the very statement that will run is checked again (`reading.py`). DuckDB itself reaches
nothing but the rows (`session.py`), and sees one batch of them at a time, so that even a construct
which slipped through could not mix more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import duckdb
import pyarrow as pa
import pyarrow.compute

from taciturn.errors import DataError, PreparationError, RowError
from taciturn.preparation.apart import SessionApart
from taciturn.preparation.expression import Expressions, check_list, check_single
from taciturn.preparation.reading import check_carried, check_reading
from taciturn.preparation.rows import (
    ROWS_PER_BATCH,
    UNIT,
    Rows,
    Skipped,
    conform,
    shielded,
    sliced,
    surviving,
    unique_columns,
)
from taciturn.preparation.session import TABLE, LockedSession

ROW_LIMIT_S = 2.0
"""How long a statement may take over one declared row: hundreds of times what it needs."""

_SEVERAL_LIMIT_S, _BATCH_LIMIT_S = 0.5, 4.0
"""Over two rows, and how much more over a whole batch. It decides nothing: rows that take longer
are halved until each is alone. So a row that never ends takes a quarter of a minute."""

_MISSING = pa.array(["", "nan", "null", "none", "<na>"], pa.string())


def selected(rows: Rows, select: str) -> Rows:
    """Apply `select=`: a list of row-wise expressions, as in `id, lower(note) AS text`.

    Row-wise matters without any server, too: an expression that mixes rows would let one unit
    change another's records and so break the sensitivity bound that the noise is scaled to.

    Raises PreparationError naming the construct, or MissingColumnError.
    """
    field = f"select={select!r}"
    expressions = check_list(select, rows.schema.names)
    prepared = _run(rows, f"SELECT {select}\nFROM {TABLE}", expressions, field)
    unique_columns(prepared.schema, field)
    return prepared


def with_unit(rows: Rows, privacy_unit: str, kept: Sequence[str]) -> Rows:
    """The columns `kept`, and UNIT: a column's value or a row-wise expression, as text.

    Two rows are of one unit if the texts are equal. A unit that is null, empty, or the text that
    stands for a missing value (nan, null, none) is refused: all such rows would count as one unit,
    and a patient hidden among them would not be protected as promised.

    Raises PreparationError, MissingColumnError, RowError.
    """
    field = f"privacy_unit={privacy_unit!r}"
    expressions = _unit_expression(rows.schema, privacy_unit)
    unit = f"CAST(({expressions.text}\n) AS VARCHAR) AS {UNIT}"
    columns = ", ".join([*map(_quoted, kept), unit])
    found = _run(rows, f"SELECT {columns}\nFROM {TABLE}", expressions, field)
    schema = found.schema.set(len(kept), pa.field(UNIT, pa.string()))
    return Rows(schema, (_unit_checked(batch, schema, field) for batch in found.batches))


def with_owners_unit(rows: Rows, unit: str, skipped: Skipped) -> Rows:
    """All columns, and UNIT as the data's owner defines it, on the rows as they are.

    A row whose unit is missing (as in `with_unit`) or cannot be computed is left out, and counted.

    Raises PreparationError, MissingColumnError; DataError if there is a column named UNIT.
    """
    if UNIT in (name.lower() for name in rows.schema.names):
        raise DataError(f"the data has a column named {UNIT}, a name that is taken; rename it")
    expressions = _unit_expression(rows.schema, unit)
    value = f"CAST(({expressions.text}\n) AS VARCHAR) AS {UNIT}"
    columns = [*map(_quoted, rows.schema.names), value]
    statement = f"SELECT {', '.join(columns)}\nFROM {TABLE}"
    found = _run(rows, statement, expressions, f"privacy_unit={unit!r}", skipped)
    named = (
        part
        for batch in found.batches
        for part in surviving(batch, lambda each: _named_only(each, skipped), skipped)
    )
    return Rows(found.schema, named)


def _named_only(batch: pa.RecordBatch, skipped: Skipped) -> pa.RecordBatch:
    """The rows whose unit is not missing; raises an Arrow error if one is not UTF-8."""
    units = batch.column(batch.num_columns - 1)
    units.validate(full=True)
    plain = pa.compute.utf8_lower(pa.compute.utf8_trim_whitespace(units))
    missing = pa.compute.or_kleene(pa.compute.is_null(units), pa.compute.is_in(plain, _MISSING))
    kept = batch.filter(pa.compute.invert(missing))
    skipped.rows += batch.num_rows - kept.num_rows
    return kept


def selected_beside_unit(rows: Rows, select: str, skipped: Skipped) -> Rows:
    """Apply `select` to rows that have UNIT, which it can neither read, alter, rename nor drop.

    A row on which `select` fails, or takes too long, is left out, and counted.

    Raises PreparationError naming the construct, or MissingColumnError.
    """
    field = f"select={select!r}"
    raw = rows.schema.remove(rows.schema.get_field_index(UNIT))
    expressions = check_list(select, raw.names)
    if UNIT in (alias.lower() for alias in expressions.aliases):
        raise PreparationError(f"{field} makes a column named {UNIT}, a name that is taken")
    statement = f"SELECT {select}\n, {UNIT}\nFROM {TABLE}"
    found = _run(rows, statement, expressions, field, skipped, carried=UNIT)
    kept = _beside_unit(found.schema)
    fields = [found.schema.field(index) for index in kept[:-1]]
    schema = pa.schema([*fields, pa.field(UNIT, pa.string())])
    unique_columns(schema, field)
    return Rows(schema, (_columns(batch, kept, schema) for batch in found.batches))


def _beside_unit(schema: pa.Schema) -> list[int]:
    """Positions of what was selected, and of UNIT at the end; `*` brings it along once more."""
    last = len(schema) - 1
    return [i for i, name in enumerate(schema.names) if i == last or name.lower() != UNIT]


def _columns(batch: pa.RecordBatch, kept: Sequence[int], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([batch.column(i) for i in kept], schema=schema)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _unit_expression(schema: pa.Schema, privacy_unit: str) -> Expressions:
    """A column is meant literally, whatever its name; anything else is SQL."""
    if privacy_unit in schema.names:
        return Expressions(_quoted(privacy_unit), (), ())
    return check_single(privacy_unit, schema.names)


def _unit_checked(batch: pa.RecordBatch, schema: pa.Schema, field: str) -> pa.RecordBatch:
    units = batch.column(batch.num_columns - 1)
    plain = pa.compute.utf8_lower(pa.compute.utf8_trim_whitespace(units))
    missing = pa.compute.any(pa.compute.is_in(plain, _MISSING)).as_py()
    if units.null_count or missing:
        raise RowError(
            f"{field} is null or empty in some rows; leave those rows out of the data, or give "
            "each its own value, for example with coalesce(patient_id, row_id)"
        )
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _run(
    rows: Rows,
    statement: str,
    expressions: Expressions,
    field: str,
    skipped: Skipped | None = None,
    carried: str | None = None,
) -> Rows:
    """Execute a statement batch by batch, once both locks are passed; row order is kept.

    Args:
        skipped: counts rows on which it fails, which are left out; without it they are an error.
        carried: the column that must be the statement's last expression and occur nowhere else.
    """
    names = {*rows.schema.names, *expressions.aliases, *expressions.parameters}
    with ExitStack() as stack:
        session = stack.enter_context(LockedSession())
        # also alone, since the statement may embed it between parentheses
        for text in (f"SELECT {expressions.text}\nFROM {TABLE}", statement):
            check_reading(session.serialized(text), names, field)
        if carried is not None:
            check_carried(session.serialized(statement), carried, field)
        schema = _bound_schema(session, statement, rows.schema, field)
        opened = stack.pop_all()

    def attempt(batch: pa.RecordBatch) -> pa.RecordBatch | None:
        more_s = _SEVERAL_LIMIT_S + _BATCH_LIMIT_S * batch.num_rows / ROWS_PER_BATCH
        limit_s = ROW_LIMIT_S if batch.num_rows == 1 else more_s
        found = apart.attempt(statement, pa.Table.from_batches([batch]), limit_s)
        if found is None or found.num_rows != batch.num_rows:
            return None
        return _one_batch(found, schema)

    apart = SessionApart()

    def results() -> Iterator[pa.RecordBatch]:
        with opened, apart:
            for batch in rows.batches:
                if skipped is not None:
                    yield from sliced(surviving(batch, attempt, skipped))
                    apart.check()
                    continue
                found = session.run(statement, pa.Table.from_batches([batch]))
                yield from (conform(part, schema) for part in found.to_batches())

    def failed(kind: str) -> PreparationError:
        # DuckDB's message quotes the value that it could not convert: it stays unread
        return PreparationError(
            f"{field} failed on a row ({kind}); guard it, for example with TRY_CAST, "
            "coalesce or CASE"
        )

    return Rows(schema, shielded(results(), failed))


def _one_batch(found: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    """A table of a batch's results; DuckDB gives columns in chunks."""
    arrays = [column.combine_chunks() for column in found.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _bound_schema(
    session: LockedSession, statement: str, schema: pa.Schema, field: str
) -> pa.Schema:
    """The result's columns, from a run on no rows: its errors can quote none and are shown."""
    try:
        return session.run(statement, schema.empty_table()).schema
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        raise PreparationError(f"{field} cannot be run: {reason}") from None

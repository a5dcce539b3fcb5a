"""Runs `select` and `privacy_unit`: row-wise SQL over the stream of rows, in a locked DuckDB.

Two locks stand before a row is read: sqlglot checks the text (`check.py`), then DuckDB's own
reading of it, and of the very statement that will run, is checked again (`duckdb_check.py`). What
names mean is decided in between, and the statement has none of them left (`names.py`). DuckDB
itself reaches nothing but the columns that the statement reads (`session.py`), and sees one batch
of rows at a time, so that even a construct which slipped through could not mix more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import duckdb
import pyarrow as pa
import pyarrow.compute

from taciturn.data.rows import (
    ROW_LIMIT_S,
    ROWS_PER_BATCH,
    UNIT,
    Rows,
    Skipped,
    filtered,
    shielded,
    sliced,
    surviving,
    unique_columns,
)
from taciturn.data.sql.check import check_list, check_single
from taciturn.data.sql.names import Output, Projection, bind_list, bind_unit
from taciturn.data.sql.process import SessionApart
from taciturn.data.sql.session import LockedSession
from taciturn.errors import PreparationError, RowError

_SEVERAL_LIMIT_S, _BATCH_LIMIT_S = 0.5, 4.0
"""Over two rows, and how much more over a whole batch. It decides nothing: rows that take longer
are divided until each is alone."""

_MISSING = pa.array(["", "nan", "null", "none", "<na>"], pa.string())


def selected(rows: Rows, select: str) -> Rows:
    """Apply `select=`: a list of row-wise expressions, as in `id, lower(note) AS text`.

    Row-wise matters without any server, too: an expression that mixes rows would let one unit
    change another's records and so break the sensitivity bound that the noise is scaled to.

    Raises PreparationError naming the construct, or MissingColumnError.
    """
    field = f"select={select!r}"
    check_list(select, rows.schema.names)
    prepared = _run(rows, lambda session: bind_list(session, select, rows.schema, field), field)
    unique_columns(prepared.schema, field)
    return prepared


def with_unit(rows: Rows, privacy_unit: str, columns: Sequence[str]) -> Rows:
    """The columns `columns`, and UNIT: a column's value or a row-wise expression, as text.

    Two rows are of one unit if the texts are equal. A unit that is null, empty, or the text that
    stands for a missing value (nan, null, none) is refused: all such rows would count as one unit,
    and a patient hidden among them would not be protected as promised.

    Raises PreparationError, MissingColumnError, RowError.
    """
    field = f"privacy_unit={privacy_unit!r}"
    passed = [rows.schema.names.index(name) for name in dict.fromkeys(columns)]
    rows_with_unit = _with_unit(rows, privacy_unit, passed, field)
    checked = (_unit_checked(batch, field) for batch in rows_with_unit.batches)
    not_text = RowError(f"{field} is not UTF-8 text in some rows; leave those rows out of the data")
    return Rows(rows_with_unit.schema, shielded(checked, lambda _: not_text))


def with_owners_unit(rows: Rows, unit: str, skipped: Skipped) -> Rows:
    """All columns, and UNIT as the data's owner defines it, on the rows as they are.

    A row whose unit is missing (as in `with_unit`) or cannot be computed is left out, and counted.

    Raises PreparationError, MissingColumnError.
    """
    passed = range(len(rows.schema))
    rows_with_unit = _with_unit(rows, unit, passed, f"privacy_unit={unit!r}", skipped)
    named_batches = (
        part
        for batch in rows_with_unit.batches
        for part in surviving(batch, lambda one: _named_only(one, skipped), skipped)
    )
    return Rows(rows_with_unit.schema, named_batches)


def _with_unit(
    rows: Rows, unit: str, passed: Sequence[int], field: str, skipped: Skipped | None = None
) -> Rows:
    """The columns at these positions, and UNIT."""
    unique_columns(rows.schema, "the data")
    if unit not in rows.schema.names:
        check_single(unit, rows.schema.names)
    own = [Output(rows.schema.names[index], index) for index in passed]

    def plan(session: LockedSession) -> Projection:
        return replace(bind_unit(session, unit, rows.schema, field), outputs=(*own, Output(UNIT)))

    return _run(rows, plan, field, skipped)


def _named_only(batch: pa.RecordBatch, skipped: Skipped) -> pa.RecordBatch:
    """The rows whose unit is not missing; raises an Arrow error if one is not UTF-8."""
    units = batch.column(batch.num_columns - 1)
    units.validate(full=True)
    plain = pa.compute.utf8_lower(pa.compute.utf8_trim_whitespace(units))
    missing = pa.compute.or_kleene(pa.compute.is_null(units), pa.compute.is_in(plain, _MISSING))
    named_rows = filtered(batch, pa.compute.invert(missing))
    skipped.rows += batch.num_rows - named_rows.num_rows
    return named_rows


def selected_beside_unit(rows: Rows, select: str, skipped: Skipped) -> Rows:
    """Apply `select` to rows whose last column is UNIT, which takes no part in it: what runs is
    given the other columns only, and the unit is put back beside each row's results.

    A row on which `select` fails, or takes too long, is left out, and counted.

    Raises PreparationError naming the construct, or MissingColumnError.
    """
    field = f"select={select!r}"
    last = len(rows.schema) - 1
    raw = rows.schema.remove(last)
    check_list(select, raw.names)

    def plan(session: LockedSession) -> Projection:
        projection = bind_list(session, select, raw, field)
        unique_columns(
            pa.schema([(output.name, pa.null()) for output in projection.outputs]), field
        )
        return replace(projection, outputs=(*projection.outputs, Output(UNIT, last)))

    return _run(rows, plan, field, skipped)


def _unit_checked(batch: pa.RecordBatch, field: str) -> pa.RecordBatch:
    units = batch.column(batch.num_columns - 1)
    plain = pa.compute.utf8_lower(pa.compute.utf8_trim_whitespace(units))
    missing = pa.compute.any(pa.compute.is_in(plain, _MISSING)).as_py()
    if units.null_count or missing:
        raise RowError(
            f"{field} is null or empty in some rows; leave those rows out of the data, or give "
            "each its own value, for example with coalesce(patient_id, row_id)"
        )
    return batch


def _run(
    rows: Rows,
    plan: Callable[[LockedSession], Projection],
    field: str,
    skipped: Skipped | None = None,
) -> Rows:
    """Execute a statement batch by batch, once both locks are passed; row order is kept.

    Args:
        plan: passes the second lock, and says what runs.
        skipped: counts rows on which it fails, which are left out; without it they are an error.
    """
    with ExitStack() as stack:
        session = stack.enter_context(LockedSession())
        try:
            projection = plan(session)
        except RecursionError:
            raise PreparationError(f"{field} is nested too deeply; make it simpler") from None
        schema = _bound_schema(session, projection, rows.schema, field)
        resources = stack.pop_all()

    def attempt(batch: pa.RecordBatch) -> pa.RecordBatch | None:
        if not projection.statement:
            return _put_together(projection, batch, None, schema)
        more_s = _SEVERAL_LIMIT_S + _BATCH_LIMIT_S * batch.num_rows / ROWS_PER_BATCH
        limit_s = more_s
        if batch.num_rows == 1:
            limit_s = ROW_LIMIT_S if skipped is None else skipped.row_limit_s
        results = apart.attempt(projection.statement, projection.table(batch), limit_s)
        if results is None or not projection.is_of(results, batch.num_rows):
            return None
        return _put_together(projection, batch, results, schema)

    apart = SessionApart()

    def results() -> Iterator[pa.RecordBatch]:
        with resources, apart:
            for batch in rows.batches:
                if skipped is not None:
                    yield from sliced(surviving(batch, attempt, skipped))
                    apart.check()
                    continue
                computed = None
                if projection.statement:
                    computed = session.run(projection.statement, projection.table(batch))
                    if not projection.is_of(computed, batch.num_rows):
                        raise PreparationError(f"{field} does not give one result for each row")
                yield _put_together(projection, batch, computed, schema)

    def failed(kind: str) -> PreparationError:
        # DuckDB's message quotes the value that it could not convert: it stays unread
        return PreparationError(
            f"{field} failed on a row ({kind}); guard it, for example with TRY_CAST, "
            "coalesce or CASE"
        )

    return Rows(schema, shielded(results(), failed))


def _put_together(
    projection: Projection, batch: pa.RecordBatch, results: pa.Table | None, schema: pa.Schema
) -> pa.RecordBatch:
    """Batch of what was computed, beside the columns that are passed on as they are."""
    computed = iter(() if results is None else results.columns[1:])
    arrays = []
    for output, field in zip(projection.outputs, schema, strict=True):
        if output.column is None:
            array = next(computed).combine_chunks()  # DuckDB gives columns in chunks
        else:
            array = batch.column(output.column)
        arrays.append(array if array.type.equals(field.type) else array.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _bound_schema(
    session: LockedSession, projection: Projection, schema: pa.Schema, field: str
) -> pa.Schema:
    """The result's columns, from a run on no rows: its errors can quote none and are shown."""
    computed: Iterator[pa.DataType] = iter(())
    if projection.statement:
        try:
            results = session.run(projection.statement, projection.empty_table(schema))
        except (duckdb.Error, pa.ArrowException) as error:
            raise _cannot_be_run(error, projection, schema, field) from None
        computed = iter(results.schema.types[1:])
    return pa.schema(
        [
            pa.field(
                output.name,
                next(computed) if output.column is None else schema.field(output.column).type,
            )
            for output in projection.outputs
        ]
    )


def _cannot_be_run(
    error: Exception, projection: Projection, schema: pa.Schema, field: str
) -> PreparationError:
    reason = projection.restore_names(str(error).partition("\n")[0]).rstrip(".")
    if isinstance(error, duckdb.NotSupportedError | pa.ArrowNotImplementedError):
        read = [schema.field(index) for index in projection.reads]
        reason += f"; it reads {', '.join(f'{column.name!r}, {column.type}' for column in read)}"
    if "BLOB" in reason:
        reason += "; bytes become text by decode(...)"
    return PreparationError(f"{field} cannot be run: {reason}")

"""Runs `select` and `privacy_unit`: row-wise SQL over the stream of rows, in a locked DuckDB.

Two locks stand before a row is read. sqlglot checks the text (`expression.py`); then DuckDB's own
parser is asked what it makes of the very statement that will run, and that is checked again, so
that a construct which the two parsers read differently does not pass. DuckDB itself has no access
to files, network, extensions or Python variables, and its configuration is locked. It sees one
batch of rows at a time, so even a construct that slipped through could not reach further.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute

from taciturn.engine.data.expression import FUNCTIONS, Expressions, check_list, check_single
from taciturn.engine.data.rows import Rows, conform, shielded, unique_columns
from taciturn.errors import PreparationError, RowError

UNIT = "__privacy_unit__"
"""Name of the column that `with_unit` appends: the unit's value as text."""

_ROWS = "rows_of_this_batch"

_MEMORY_LIMIT = "400MB"
_MOST_THREADS = 4

_MISSING = pa.array(["", "nan", "null", "none", "<na>"], pa.string())

_CLASSES = frozenset(
    {
        "BETWEEN",
        "CASE",
        "CAST",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "LAMBDA",
        "LAMBDA_REF",
        "OPERATOR",
        "STAR",
        "TYPE",
    }
)
_FORBIDDEN_OPERATORS = frozenset({"GROUPING_FUNCTION", "OPERATOR_UNPACK"})
# what DuckDB's parser writes for operators, ESCAPE, INTERVAL 1 DAY and [i:j]
_SYNTAX_NAMES = """
    + - * / // % || ~~ !~~ ~~* !~~* ~~~ -> ->> ^@
    like_escape not_like_escape ilike_escape not_ilike_escape list_slice array_slice
    to_years to_quarters to_months to_weeks to_days to_hours to_minutes to_seconds
    to_milliseconds to_microseconds
"""
_SYNTAX = frozenset(_SYNTAX_NAMES.split())


def locked_connection() -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory that can reach nothing but what is registered with it."""
    connection = duckdb.connect(":memory:")
    settings = {
        "memory_limit": _MEMORY_LIMIT,
        "threads": min(_MOST_THREADS, os.cpu_count() or 1),
        "temp_directory": "",  # it would be the one folder that COPY may write to
        "TimeZone": "UTC",  # not the machine's: the same rows must give the same text everywhere
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "enable_external_access": False,
        "lock_configuration": True,
    }
    for name, value in settings.items():
        shown = "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
        connection.execute(f"SET {name} = {shown}")
    return connection


def selected(rows: Rows, select: str) -> Rows:
    """Apply `select=`: a list of row-wise expressions, as in `id, lower(note) AS text`.

    Row-wise matters without any server, too: an expression that mixes rows would let one unit
    change another's records and so break the sensitivity bound that the noise is scaled to.

    Raises PreparationError naming the construct, or MissingColumnError.
    """
    expressions = check_list(select, rows.schema.names)
    statement = f"SELECT {select}\nFROM {_ROWS}"
    prepared = _run(rows, statement, expressions, f"select={select!r}")
    unique_columns(prepared.schema, f"select={select!r}")
    return prepared


def with_unit(rows: Rows, privacy_unit: str) -> Rows:
    """Append the column UNIT: a column's value or a row-wise expression, as text.

    Two rows are of one unit if the texts are equal. A unit that is null, empty, or the text that
    stands for a missing value (nan, null, none) is refused: all such rows would count as one unit,
    and a patient hidden among them would not be protected as promised.

    Raises PreparationError, MissingColumnError, RowError.
    """
    expressions = _unit_expression(rows.schema, privacy_unit)
    field = f"privacy_unit={privacy_unit!r}"
    # checked alone first: the second statement embeds it between parentheses
    with locked_connection() as connection:
        _check_reading(
            connection, f"SELECT {expressions.text}\nFROM {_ROWS}", expressions, rows.schema, field
        )
    statement = f"SELECT *, CAST(({expressions.text}\n) AS VARCHAR) AS {UNIT}\nFROM {_ROWS}"
    found = _run(rows, statement, expressions, field)
    schema = found.schema.set(len(found.schema) - 1, pa.field(UNIT, pa.string()))
    return Rows(schema, (_unit_checked(batch, schema, field) for batch in found.batches))


def _unit_expression(schema: pa.Schema, privacy_unit: str) -> Expressions:
    """A column is meant literally, whatever its name; anything else is SQL."""
    if privacy_unit in schema.names:
        quoted = '"' + privacy_unit.replace('"', '""') + '"'
        return Expressions(quoted, (), ())
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


def _run(rows: Rows, statement: str, expressions: Expressions, field: str) -> Rows:
    """Execute a checked statement batch by batch; row order is kept."""
    connection = locked_connection()
    _check_reading(connection, statement, expressions, rows.schema, field)
    schema = _bound_schema(connection, statement, rows.schema, field)

    def results() -> Iterator[pa.RecordBatch]:
        with connection:
            for batch in rows.batches:
                yield from (
                    conform(part, schema) for part in _execute(connection, statement, batch)
                )

    def failed(kind: str) -> PreparationError:
        # DuckDB's message quotes the value that it could not convert: it stays unread
        return PreparationError(
            f"{field} failed on a row ({kind}); guard it, for example with TRY_CAST, "
            "coalesce or CASE"
        )

    return Rows(schema, shielded(results(), failed))


def _execute(
    connection: duckdb.DuckDBPyConnection, statement: str, rows: pa.RecordBatch | pa.Table
) -> Any:
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    connection.register(_ROWS, table)
    return connection.sql(statement).to_arrow_table().to_batches()


def _bound_schema(
    connection: duckdb.DuckDBPyConnection, statement: str, schema: pa.Schema, field: str
) -> pa.Schema:
    """The result's columns, from a run on no rows: its errors can quote none and are shown."""
    connection.register(_ROWS, schema.empty_table())
    try:
        return connection.sql(statement).to_arrow_table().schema
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        raise PreparationError(f"{field} cannot be run: {reason}") from None


def _check_reading(
    connection: duckdb.DuckDBPyConnection,
    statement: str,
    expressions: Expressions,
    schema: pa.Schema,
    field: str,
) -> None:
    """The second lock: what DuckDB's own parser reads in `statement` must be row-wise, too."""
    found = connection.execute("SELECT json_serialize_sql(?)", [statement]).fetchall()
    reading: dict[str, Any] = json.loads(found[0][0])
    if reading["error"] or len(reading["statements"]) != 1:
        raise PreparationError(f"{field} is not SQL that DuckDB reads as one list of expressions")
    query = reading["statements"][0]["node"]
    extra = _beyond_a_projection(query)
    if extra is not None:
        raise PreparationError(f"{field} has a {extra}; give only row-wise expressions")
    names = {*schema.names, *expressions.aliases, *expressions.parameters}
    known = frozenset(name.lower() for name in names)
    for node in _nodes(query["select_list"]):
        problem = _problem(node, known)
        if problem is not None:
            raise PreparationError(
                f"{field} uses {problem}, which is not on the list of row-wise constructs"
            )


def _beyond_a_projection(query: dict[str, Any]) -> str | None:
    if query["type"] != "SELECT_NODE":
        return str(query["type"])
    source = query["from_table"]
    if source["type"] != "BASE_TABLE" or source["table_name"] != _ROWS or source["sample"]:
        return "FROM clause"
    for key in ("where_clause", "group_expressions", "group_sets", "having", "sample", "qualify"):
        if query.get(key):
            return key
    return "modifier" if query["modifiers"] or query["cte_map"]["map"] else None


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every expression in a serialised tree, wherever a version of DuckDB keeps it."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _problem(node: dict[str, Any], known: frozenset[str]) -> str | None:
    kind = node["class"]
    if kind not in _CLASSES or node.get("type") in _FORBIDDEN_OPERATORS:
        return str(node.get("type", kind))
    if kind == "FUNCTION":
        name = str(node["function_name"]).lower()
        if name not in FUNCTIONS | _SYNTAX:
            return f"the function {name}"
        orders = (node.get("order_bys") or {}).get("orders")
        if node.get("filter") or node.get("distinct") or orders:
            return f"the function {name} as an aggregate"
    if kind == "COLUMN_REF" and str(node["column_names"][0]).lower() not in known:
        return f"the name {node['column_names'][0]}"
    if kind == "STAR" and (node.get("columns") or node.get("expr") or node.get("relation_name")):
        return "a star that is not alone"
    return None

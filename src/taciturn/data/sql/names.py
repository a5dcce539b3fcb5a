"""Meaning of every name in a selection: decided here and exactly, before DuckDB is asked.

A schema tells `ID` from `id`. DuckDB doesn't, and would take the first of them. So it is given no
name that anybody wrote: in the statement that runs, columns, results and the parameters of lambdas
are numbered, and the table that it runs over holds the numbered columns which it reads, and nothing
else. A column that is only passed on never goes through DuckDB, whatever its type.

A name means what is spelled exactly so: a lambda's parameter, the innermost first, then a column,
then a result further left. If nothing is, it means the one that differs in the case of ASCII
letters only; if there are several of these, it is refused.
"""

from __future__ import annotations

import json
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from taciturn.data.arrow_types import OpaqueType
from taciturn.data.rows import folded, missing_column, same_names
from taciturn.data.sql.duckdb_check import LOCATION, check_reading, nodes
from taciturn.data.sql.session import TABLE, LockedSession
from taciturn.errors import PreparationError

_POSITION = "n"
_NUMBER = re.compile(r"\b(?:[cr]\d+|p\d+_\d+)\b")
Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """A column of a result: the rows' own at position `column`, or else a computed one."""

    name: str
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Projection:
    """A statement over numbered columns, and what its results are called.

    Attributes:
        statement: gives the rows' positions, then one column for each computed output, in order;
            empty if nothing is computed.
        reads: positions of the columns that it reads.
        spellings: what stood in place of the statement's numbers.
    """

    outputs: tuple[Output, ...]
    statement: str
    reads: tuple[int, ...]
    spellings: Mapping[str, str]

    def restore_names(self, message: str) -> str:
        """DuckDB's words about the statement, with the names as they were written."""
        return _NUMBER.sub(lambda number: self.spellings.get(number[0], number[0]), message)

    def table(self, rows: pa.RecordBatch) -> pa.Table:
        """Table that the statement runs over."""
        return self._table([rows.column(index) for index in self.reads], rows.num_rows)

    def empty_table(self, schema: pa.Schema) -> pa.Table:
        """The same of no rows: without a chunk, for Arrow cannot make an array of every type."""
        kinds = [schema.field(index).type for index in self.reads]
        return self._table([pa.chunked_array([], kind) for kind in kinds], 0)

    def _table(self, columns: Sequence[pa.Array | pa.ChunkedArray], n_rows: int) -> pa.Table:
        return pa.table([_positions(n_rows), *columns], [_POSITION, *map(_column, self.reads)])

    def is_of(self, results: pa.Table, n_rows: int) -> bool:
        """True if results came one for each row, and in the rows' order."""
        return bool(results.column(0).combine_chunks().equals(_positions(n_rows)))


def bind_list(session: LockedSession, text: str, schema: pa.Schema, field: str) -> Projection:
    """The projection of a select list.

    Raises PreparationError, MissingColumnError.
    """
    items = check_reading(session.serialized(f"SELECT {text}\nFROM {TABLE}"), field)
    return _bound(session, items, schema, field)


def bind_unit(session: LockedSession, unit: str, schema: pa.Schema, field: str) -> Projection:
    """The projection of a unit as text: a column is meant literally, anything else is SQL.

    Raises PreparationError, MissingColumnError.
    """
    cast = _read(session, f"CAST({_POSITION} AS VARCHAR)")
    if unit in schema.names:
        value = {**cast["child"], "column_names": [unit]}
    else:
        (value, *rest) = check_reading(session.serialized(f"SELECT {unit}\nFROM {TABLE}"), field)
        if rest or value["class"] == "STAR" or value["alias"]:
            raise PreparationError(f"{field} is not one expression; give one, without an alias")
    return _bound(session, [{**cast, "child": value}], schema, field)


def _bound(
    session: LockedSession, items: Sequence[Node], schema: pa.Schema, field: str
) -> Projection:
    names = _Names(schema.names)
    outputs: list[Output] = []
    computed: list[Node] = []
    for item in items:
        if item["class"] == "STAR":
            outputs += [Output(name, index) for index, name in enumerate(schema.names)]
            continue
        alias = item["alias"]
        column = names.passed_on(item)
        if column is not None:
            outputs.append(Output(alias or schema.names[column], column))
            meaning = _column(column)
        else:
            meaning = f"r{len(computed)}"
            outputs.append(Output(alias or _name(session, item)))
            computed.append({**names.numbered(item), "alias": meaning})
        if alias:
            names.results[alias] = meaning
    reads = names.reads()
    _check_types(computed, [schema.field(index) for index in reads], field)
    statement = _statement(session, computed, field) if computed else ""
    return Projection(tuple(outputs), statement, reads, names.spellings)


class _Names:
    """Meanings of names at some place in a list of expressions."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self.results: dict[str, str] = {}
        own = {name: _column(index) for index, name in enumerate(columns)}
        self._index = {number: index for index, number in enumerate(own.values())}
        self._meanings = ChainMap(own, self.results)
        self.spellings: dict[str, str] = {}

    def reads(self) -> tuple[int, ...]:
        """The columns that numbered expressions read."""
        return tuple(sorted(self._index[name] for name in self.spellings if name in self._index))

    def passed_on(self, item: Node) -> int | None:
        """The column that an expression is, if it is nothing else."""
        if item["class"] != "COLUMN_REF" or len(item["column_names"]) > 1:
            return None
        return self._index.get(self._meaning(item["column_names"][0], self._meanings))

    def numbered(self, item: Node) -> Node:
        """The expression with a number for every name."""
        numbered: Node = self._numbered(item, self._meanings)
        return numbered

    def _numbered(self, tree: Any, meanings: ChainMap[str, str]) -> Any:
        if isinstance(tree, list):
            return [self._numbered(child, meanings) for child in tree]
        if not isinstance(tree, dict):
            return tree
        if tree.get("class") == "COLUMN_REF":
            head, *path = tree["column_names"]
            meaning = self._meaning(head, meanings)
            self.spellings[meaning] = head
            return {**tree, "column_names": [meaning, *path]}
        if tree.get("class") == "LAMBDA" and tree.get("syntax_type") == "LAMBDA_KEYWORD":
            parameters = [
                n["column_names"][0] for n in nodes(tree["lhs"]) if n["class"] == "COLUMN_REF"
            ]
            depth = len(meanings.maps)
            meanings = meanings.new_child(
                {name: f"p{depth}_{i}" for i, name in enumerate(parameters)}
            )
        return {key: self._numbered(child, meanings) for key, child in tree.items()}

    def _meaning(self, name: str, meanings: ChainMap[str, str]) -> str:
        if name in meanings:
            return meanings[name]
        same = same_names(name, meanings)
        if len(same) != 1:
            raise missing_column(name, same or self._columns)
        return meanings[same[0]]


def _column(index: int) -> str:
    return f"c{index}"


def _positions(n_rows: int) -> pa.Array:
    return pa.array(range(n_rows), pa.int64())


def _read(session: LockedSession, expression: str) -> Node:
    """DuckDB's reading of an expression of our own."""
    reading = json.loads(session.serialized(f"SELECT {expression} FROM {TABLE}"))
    (item,) = reading["statements"][0]["node"]["select_list"]
    return dict(item)


def _sql_of(session: LockedSession, items: Sequence[Node]) -> str:
    """The statement that selects these expressions."""
    reading = json.loads(session.serialized(f"SELECT {_POSITION} FROM {TABLE}"))
    reading["statements"][0]["node"]["select_list"] = items
    return session.sql_of(json.dumps(reading))


def _name(session: LockedSession, item: Node) -> str:
    """Name that DuckDB gives an expression without an alias: a field's name, or the expression."""
    if item["class"] == "COLUMN_REF":
        return str(item["column_names"][-1])
    return _sql_of(session, [item]).removeprefix("SELECT ").removesuffix(f" FROM {TABLE}")


def _statement(session: LockedSession, items: Sequence[Node], field: str) -> str:
    """The statement that runs: what DuckDB reads in it is checked, and is what is meant."""
    expressions = [_read(session, _POSITION), *items]
    statement = _sql_of(session, expressions)
    read = check_reading(session.serialized(statement), field)
    if _bare(read) != _bare(expressions):
        raise PreparationError(f"{field} cannot be written down exactly; make it simpler")
    return statement


def _bare(tree: Any) -> Any:
    """A reading without what does not matter: where in the text a node stood, as what spelling."""
    if isinstance(tree, list):
        return [_bare(child) for child in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: _bare(child)
        for key, child in tree.items()
        if key != "is_operator" and not key.startswith(LOCATION)
    }


def _check_types(items: Sequence[Node], fields: Sequence[pa.Field], field: str) -> None:
    """DuckDB can read the columns, and tell the fields of their structs apart where it must."""
    strings = {folded(text) for text in _strings(items)}
    for column in fields:
        if isinstance(column.type, OpaqueType):
            raise PreparationError(
                f"{field} reads column {column.name!r}, whose type no expression can read; leave "
                "it out, or convert it beforehand"
            )
        for first, second in _alike(column.type):
            if folded(first) in strings:
                raise PreparationError(
                    f"{field} reads a field of column {column.name!r}, in which {first!r} and "
                    f"{second!r} cannot be told apart by SQL; rename one beforehand"
                )


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _strings(child)


def _alike(kind: pa.DataType) -> Iterator[tuple[str, str]]:
    """Pairs of fields of one struct, anywhere in a type, that differ in case only or not at all."""
    inside = [kind.field(index) for index in range(kind.num_fields)]
    names: dict[str, str] = {}
    for member in inside:
        if pa.types.is_struct(kind) and folded(member.name) in names:
            yield names[folded(member.name)], member.name
        names[folded(member.name)] = member.name
        yield from _alike(member.type)

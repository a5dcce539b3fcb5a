"""JSON objects to Arrow: one pass finds a type for every column, a second one reads the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa

from taciturn.engine.data.location import Location
from taciturn.errors import DataError
from taciturn.preparation.rows import ROWS_PER_BATCH, Rows, shield, shielded

Object = Mapping[str, Any]

_BLOCK_BYTES = 4 << 20
_MOST_COLUMNS = 2000
_MOST_FIELDS = 100


def read_jsonl(location: Location) -> Rows:
    """One JSON object per line. Read twice: a late row may widen a column's type."""
    failed = _unfit(location.shown)
    columns = shield(lambda: _Columns.of(_objects(location)), failed)
    return Rows(columns.schema(), shielded(columns.batches(_objects(location)), failed))


def read_objects(objects: Sequence[Object], shown: str) -> Rows:
    """A list of mappings, as `json.loads` would give them."""

    def chunks() -> Iterator[Sequence[Object]]:
        for start in range(0, len(objects), ROWS_PER_BATCH):
            yield objects[start : start + ROWS_PER_BATCH]

    failed = _unfit(shown)
    columns = shield(lambda: _Columns.of(chunks()), failed)
    return Rows(columns.schema(), shielded(columns.batches(chunks()), failed))


def _unfit(shown: str) -> Callable[[str], DataError]:
    return lambda kind: DataError(
        f"{shown} has a row that Arrow cannot hold ({kind}); use plain values and valid Unicode"
    )


class _Columns:
    """Name and type of every column seen so far; None stands for values of mixed types.

    A mixed column becomes text, its values other than strings as JSON: a guess would either fail
    late or lose digits of an identifier.
    """

    def __init__(self) -> None:
        self._types: dict[str, pa.DataType | None] = {}

    @classmethod
    def of(cls, chunks: Iterable[Sequence[Object]]) -> _Columns:
        columns = cls()
        for chunk in chunks:
            columns._see(chunk)
        return columns

    def schema(self) -> pa.Schema:
        return pa.schema([(name, kind or pa.string()) for name, kind in self._types.items()])

    def batches(self, chunks: Iterable[Sequence[Object]]) -> Iterator[pa.RecordBatch]:
        schema = self.schema()
        for chunk in chunks:
            arrays = [self._array(name, chunk) for name in schema.names]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _see(self, chunk: Sequence[Object]) -> None:
        for name in dict.fromkeys(key for row in chunk for key in row):
            seen = _type([row.get(name) for row in chunk])
            self._types[name] = _merged(self._types[name], seen) if name in self._types else seen
        if len(self._types) > _MOST_COLUMNS:
            raise DataError(
                f"rows have more than {_MOST_COLUMNS} different keys; "
                "nest what is not a column below one key"
            )

    def _array(self, name: str, chunk: Sequence[Object]) -> pa.Array:
        kind = self._types[name]
        values = [row.get(name) for row in chunk]
        if kind is None:
            return pa.array([_text(value) for value in values], pa.string())
        return pa.array(values, kind)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _type(values: list[Any]) -> pa.DataType | None:
    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return None
    return None if _fields(kind) > _MOST_FIELDS else kind


def _merged(first: pa.DataType | None, second: pa.DataType | None) -> pa.DataType | None:
    if first is None or second is None or first.equals(second):
        return first if second is not None else None
    schemas = [pa.schema([("x", kind)]) for kind in (first, second)]
    try:
        kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    return None if _fields(kind) > _MOST_FIELDS else kind


def _fields(kind: pa.DataType) -> int:
    """How many struct fields a type has: an object used as a dictionary has one per key."""
    children = [kind.field(index).type for index in range(kind.num_fields)]
    return len(children) + sum(_fields(child) for child in children)


def _objects(location: Location) -> Iterator[Sequence[Object]]:
    def failed(kind: str) -> DataError:
        return DataError(
            f"{location.shown} has a line that is not one JSON object in UTF-8 ({kind}); find it "
            "with: python -m json.tool --json-lines FILE"
        )

    def parsed() -> Iterator[Sequence[Object]]:
        for path in location.paths:
            with location.open(path) as file:
                for lines in _lines(file):
                    yield [_object(line, location.shown) for line in lines]

    return shielded(parsed(), failed)


def _object(line: bytes, shown: str) -> Object:
    value = json.loads(line)
    if isinstance(value, dict):
        return value
    raise DataError(
        f"{shown} has a line that is not a JSON object; write one object per line, "
        "from one array for example with: jq -c '.[]' FILE"
    )


def _lines(file: IO[bytes]) -> Iterator[list[bytes]]:
    """Lists of non-blank lines; only complete lines, whatever the blocks."""
    tail = b""
    while block := file.read(_BLOCK_BYTES):
        *complete, tail = (tail + block).split(b"\n")
        yield from _chunks(complete)
    yield from _chunks([tail])


def _chunks(lines: list[bytes]) -> Iterator[list[bytes]]:
    filled = [line for line in lines if line.strip()]
    for start in range(0, len(filled), ROWS_PER_BATCH):
        yield filled[start : start + ROWS_PER_BATCH]

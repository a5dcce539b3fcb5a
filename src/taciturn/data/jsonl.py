"""JSON objects to Arrow: one pass finds a type for every column, a second one reads the rows.

DuckDB's `read_json` is several times as fast, and is not used: it turns integers of many digits
into floats, dates and UUIDs into types of its own, `ID` beside `id` into `ID_1`; it quotes a row
with two equal keys in its error, makes a row of nulls of a damaged line, and lets one line that is
no object replace all columns (`tests/data/test_jsonl.py`).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import NoneType
from typing import IO, Any

import pyarrow as pa

from taciturn.data.location import Location
from taciturn.data.rows import ROWS_PER_BATCH, Rows, Skipped, attempted, shield, shielded
from taciturn.errors import DataError

Object = Mapping[str, Any]

_BLOCK_BYTES = 4 << 20
_LONGEST_FIRST_LINE_BYTES = 1 << 20
_MOST_COLUMNS = 2000
_MOST_FIELDS = 100
_DEEPEST = 20
_ON_SEVERAL_LINES = re.compile(rb"\[\s*[{\]]|[\[{]\s*$")
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_LONGEST_TOKEN = 16
"""Characters of JSON outside of texts, and of what is escaped within them, that belong together."""


def read_jsonl(location: Location, skipped: Skipped | None = None) -> Rows:
    """JSON objects, one per line or in one array. Read twice: a late row may widen a type.

    Args:
        skipped: counts lines that are no row, which are left out; without it they are an error.
    """
    return _read(partial(_objects, location), location.label, skipped)


def read_objects(objects: Sequence[Object], label: str) -> Rows:
    """A list of mappings, as `json.loads` would give them."""

    def chunks(_: Skipped | None) -> Iterator[Sequence[Object]]:
        for start in range(0, len(objects), ROWS_PER_BATCH):
            yield objects[start : start + ROWS_PER_BATCH]

    return _read(chunks, label)


def _read(
    chunks: Callable[[Skipped | None], Iterator[Sequence[Object]]],
    label: str,
    skipped: Skipped | None = None,
) -> Rows:
    def failed(kind: str) -> DataError:
        return DataError(
            f"{label} has a row that Arrow cannot hold ({kind}); use plain values, valid Unicode, "
            "and strings as keys"
        )

    columns = shield(lambda: _Columns.of(chunks(skipped and Skipped())), failed)
    schema = shield(columns.schema, failed)
    return Rows(schema, shielded(columns.batches(chunks(skipped), skipped), failed))


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

    def batches(
        self, chunks: Iterable[Sequence[Object]], skipped: Skipped | None
    ) -> Iterator[pa.RecordBatch]:
        schema = self.schema()
        for chunk in chunks:
            if skipped is None:
                yield self._batch(chunk, schema)
            else:
                yield from self._surviving(chunk, schema, skipped)

    def _surviving(
        self, chunk: Sequence[Object], schema: pa.Schema, skipped: Skipped
    ) -> Iterator[pa.RecordBatch]:
        """The same of the objects that fit; halved where it fails, as `rows.surviving` does."""
        batch = attempted(lambda: self._batch(chunk, schema))
        if batch is not None:
            yield batch
        elif len(chunk) > 1:
            half = len(chunk) // 2
            yield from self._surviving(chunk[:half], schema, skipped)
            yield from self._surviving(chunk[half:], schema, skipped)
        else:
            skipped.rows += 1

    def _batch(self, chunk: Sequence[Object], schema: pa.Schema) -> pa.RecordBatch:
        arrays = [self._array(name, chunk) for name in schema.names]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _see(self, chunk: Sequence[Object]) -> None:
        for name in dict.fromkeys(chain.from_iterable(chunk)):
            type_ = _type([row.get(name) for row in chunk])
            self._types[name] = _merged(self._types[name], type_) if name in self._types else type_
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
    if set(map(type, values)) <= {str, NoneType} and any(value is not None for value in values):
        return pa.string()  # what Arrow would say, without a copy of the texts
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


def _fields(kind: pa.DataType, depth: int = 0) -> int:
    """Number of struct fields of a type: an object used as a dictionary has one per key.

    Of what is nested very deeply there are more than can be told.
    """
    if depth > _DEEPEST:
        return _MOST_FIELDS + 1
    children = [kind.field(index).type for index in range(kind.num_fields)]
    return len(children) + sum(_fields(child, depth + 1) for child in children)


def _objects(location: Location, skipped: Skipped | None) -> Iterator[Sequence[Object]]:
    def failed(kind: str) -> DataError:
        return DataError(
            f"{location.label} does not hold JSON objects in UTF-8, one per line or in one array "
            f"({kind}); find what is wrong with: python -m json.tool FILE, and --json-lines for "
            "one per line"
        )

    def parsed() -> Iterator[Sequence[Object]]:
        for path in location.paths:
            partition = location.partition(path)
            with location.open(path) as file:
                for objects in _of_file(file, location.label, skipped):
                    if partition:
                        location.check_columns(
                            path, list({name for row in objects for name in row})
                        )
                        objects = [{**row, **partition} for row in objects]
                    yield objects

    return shielded(parsed(), failed)


def _of_file(file: IO[bytes], label: str, skipped: Skipped | None) -> Iterator[list[Object]]:
    """The objects of one file: one per line, or, if its first line says so, wherever they end.

    That is how it begins, and nothing else about it: a first row that is damaged is one line, too.
    """
    blocks, head, line = _blocks(file), b"", b""
    for block in blocks:
        head += block
        line, end, _ = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
        if end or len(line) > _LONGEST_FIRST_LINE_BYTES:
            break
    blocks = chain([head], blocks)
    if _ON_SEVERAL_LINES.match(line):
        parts: Iterator[list[Any]] = _Values(blocks).parts()
        read: Callable[[Any], Object] = partial(_object, label=label)
    else:
        parts = _lines(blocks)
        read = partial(_parsed, label=label)
    if skipped is None:
        return ([read(value) for value in part] for part in parts)
    return (_readable(part, read, skipped) for part in parts)


def _readable(part: list[Any], read: Callable[[Any], Object], skipped: Skipped) -> list[Object]:
    """Rows that are objects, and text in all they say."""

    def read_whole(value: Any) -> Object:
        row = read(value)
        if not isinstance(value, bytes) or b"\\u" in value:  # it may be half of a character
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        return row

    objects = (attempted(partial(read_whole, value)) for value in part)
    rows = [row for row in objects if row is not None]
    skipped.rows += len(part) - len(rows)
    return rows


def _parsed(line: bytes, label: str) -> Object:
    text = line.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n").decode("utf-8")
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise ValueError("more than one value on a line")
    return _object(value, label)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block


def _object(value: Any, label: str) -> Object:
    if isinstance(value, dict):
        return value
    raise DataError(
        f"{label} holds JSON that is not an object; write one object per line, or one array of "
        "objects"
    )


class _Values:
    """Values of JSON one after the other, or the elements of one array, on however many lines.

    As much of the text is held as one block, and a value that is longer.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = codecs.iterdecode(blocks, "utf-8-sig")
        self._text, self._at, self._read = "", 0, 0

    def parts(self) -> Iterator[list[Any]]:
        """Lists of at most ROWS_PER_BATCH values, or what one block holds."""
        array = self._next() == "["
        self._at += array
        end, read = "]" if array else "", self._read
        values: list[Any] = []
        while self._next() != end:
            values.append(self._value())
            if array and self._next() != end:
                self._pass(",")
            if len(values) == ROWS_PER_BATCH or self._read > read:
                yield values
                values, read = [], self._read
        if array:
            self._pass("]")
            self._pass("")
        yield values

    def _next(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _pass(self, character: str) -> None:
        if self._next() != character:
            raise ValueError(f"no {character!r} between values or at their end")
        self._at += 1

    def _value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # what a block has cut off is wrong at its end, or is a text without one
                cut = len(self._text) - error.pos < _LONGEST_TOKEN or "Unterminated" in error.msg
                if not (cut and self._more()):
                    raise
            else:
                length = end - self._at
                # a number that a block has cut off is a number, too
                if end < len(self._text) or isinstance(value, dict) or not self._more():
                    self._at += length
                    return value

    def _more(self) -> bool:
        """Read a block, or as much as is held: a long value is not read again for every block."""
        rest = self._text[self._at :]
        parts = [rest]
        for block in self._blocks:
            parts.append(block)
            if sum(map(len, parts)) >= 2 * len(rest):
                break
        self._text, self._at, self._read = "".join(parts), 0, self._read + 1
        return len(parts) > 1


def _lines(blocks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Lists of non-blank lines; only complete lines, whatever the blocks."""
    tail = b""
    for block in blocks:
        *complete, tail = (tail + block).split(b"\n")
        yield from _chunks(complete)
    yield from _chunks([tail])


def _chunks(lines: list[bytes]) -> Iterator[list[bytes]]:
    filled = [line for line in lines if line.strip()]
    for start in range(0, len(filled), ROWS_PER_BATCH):
        yield filled[start : start + ROWS_PER_BATCH]

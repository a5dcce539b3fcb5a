"""The columns that are trained on, as text; and whether every row has text in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute

from taciturn.data.formats import chats, joined_questions
from taciturn.data.rows import UNIT, Rows, shield
from taciturn.data.schema_fields import Fields, is_bytes, is_text
from taciturn.errors import RowError


def text_columns(rows: Rows, fields: Fields) -> Rows:
    """Only the columns that `fields` names, as text (messages as JSON), and UNIT if it is there.

    Every row is checked, also those that the bound on records per unit drops later: whether data
    is accepted must not depend on a seed.

    Raises RowError if a row has no text; it says neither which nor how many.
    """
    unit = [UNIT] if UNIT in rows.schema.names else []
    names = [*_positions(fields), *unit]
    types = [pa.large_string()] * len(fields.parts) + [pa.string()] * len(unit)
    schema = pa.schema(list(zip(names, types, strict=True)))

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.batches:
            texts = _parts(batch, fields)
            unit_columns = [batch.column(name) for name in unit]
            yield pa.RecordBatch.from_arrays([*texts, *unit_columns], schema=schema)

    return Rows(schema, batches())


def _positions(fields: Fields) -> list[str]:
    """Names of our own, so that no column of the data can clash with UNIT and the like."""
    return [f"part_{index}" for index in range(len(fields.parts))]


def _parts(batch: pa.RecordBatch, fields: Fields) -> list[pa.Array]:
    """The texts of each record, converted from the format that the rows are in."""
    if fields.format == "auto":
        return [_texts(batch.column(name), name) for name in fields.columns]
    first, *more_columns = fields.columns
    if fields.format == "alpaca":
        more = (
            _optional(batch.column(more_columns[0]), more_columns[0]) if more_columns[1:] else None
        )
        question = joined_questions(_texts(batch.column(first), first), more)
        return [question, _texts(batch.column(more_columns[-1]), more_columns[-1])]
    systems = _optional(batch.column(more_columns[0]), more_columns[0]) if more_columns else None
    return [chats(fields.format, first, _texts(batch.column(first), first), systems)]


def _texts(column: pa.Array, name: str) -> pa.LargeStringArray:
    texts = shield(lambda: _filled(column), lambda _: _bad_rows(name))
    if texts is None:
        raise _bad_rows(name)
    return texts


def _optional(column: pa.Array, name: str) -> pa.LargeStringArray:
    """The column as text, which may be empty or null."""
    return shield(lambda: column.cast(pa.large_string()), lambda _: _bad_rows(name))


def _filled(column: pa.Array) -> pa.LargeStringArray | None:
    """The column as text; None if a row is null or blank, an Arrow error if it is not UTF-8."""
    plain = column if is_text(column.type) or is_bytes(column.type) else _as_json(column)
    texts = plain.cast(pa.large_string())
    lengths = pa.compute.binary_length(pa.compute.utf8_trim_whitespace(texts))
    return None if texts.null_count or pa.compute.min(lengths).as_py() == 0 else texts


def _as_json(column: pa.Array) -> pa.Array:
    lists = column.to_pylist()
    texts = [
        None if item is None else json.dumps(item, ensure_ascii=False, default=_plain)
        for item in lists
    ]
    return pa.array(texts, pa.large_string())


def _plain(value: Any) -> str:
    """Text for a value that JSON doesn't have, as database exports have beside role and content."""
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError


def _bad_rows(name: str) -> RowError:
    return RowError(
        f"column {name!r} is empty, null or not UTF-8 text in some rows; leave those rows out of "
        "the data, or fill them in select, for example with coalesce"
    )

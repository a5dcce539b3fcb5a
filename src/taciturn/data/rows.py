"""A stream of rows: the schema first, then Arrow record batches, read once, in bounded memory."""

from __future__ import annotations

import difflib
import math
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Self, TypeVar

import pyarrow as pa

from taciturn.errors import DataError, MissingColumnError, TaciturnError, TimeLimitError

ROWS_PER_BATCH = 8192
"""Rows of one batch at most: large enough for vector speed."""

BATCH_BYTES = 16 << 20
"""Bytes of one batch, roughly at most: long notes come in batches of fewer rows."""

UNIT = "__privacy_unit__"
"""Name of the column that `selection.with_unit` appends: the unit's value as text. Rows that come
with a column of this name are refused (`unique_columns`)."""

ROW_LIMIT_S = 2.0
"""How long a statement or a tokenizer may take over one declared row at most: hundreds of times
what it needs."""

_ROW_LEAST_S = 0.2  # where there are many; still tens of times what a row needs

_PARTS = 8

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

_STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows with a known schema. `batches` can be read once, and holds one batch at a time.

    The schema (column names and types) is public; what is in the batches is private.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def shielded(items: Iterator[T], replace: Callable[[str], TaciturnError]) -> Iterator[T]:
    """Yield from `items`; a library's error becomes `replace(kind)`.

    Messages of parsers and databases quote the value they stumble over. So only the kind of the
    error passes, and the new one is raised outside the handler: the old one is not even its
    context, which a traceback would print.
    """
    while True:
        failure: TaciturnError | None = None
        try:
            item = next(items)
        except StopIteration:
            return
        except (TaciturnError, *_STOPS):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            failure = replace(type(error).__name__)
        if failure is not None:
            raise failure
        yield item


def shield(call: Callable[[], T], replace: Callable[[str], TaciturnError]) -> T:
    """Return `call()`; a library's error becomes `replace(kind)`, as in `shielded`."""

    def once() -> Iterator[T]:
        yield call()

    return next(shielded(once(), replace))


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Give `batch` the columns of `schema`: cast where types differ, null where a column lacks."""
    if batch.schema.equals(schema):
        return batch
    arrays = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        column = pa.nulls(batch.num_rows, field.type) if index < 0 else batch.column(index)
        arrays.append(column if column.type.equals(field.type) else column.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def sliced(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut batches to ROWS_PER_BATCH rows and about BATCH_BYTES, by views; skip empty ones."""
    for batch in batches:
        row_bytes = max(1, batch.nbytes // max(1, batch.num_rows))
        size = max(1, min(ROWS_PER_BATCH, BATCH_BYTES // row_bytes))
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)


def filtered(batch: pa.RecordBatch, is_kept: pa.BooleanArray) -> pa.RecordBatch:
    """The rows that are kept. Arrow has no filter for columns of some types: theirs are put
    together from single rows."""

    def of(column: pa.Array) -> pa.Array:
        try:
            return column.filter(is_kept)
        except pa.ArrowNotImplementedError:
            rows = [row for row, keep in enumerate(is_kept.to_pylist()) if keep]
            parts = [column.slice(row, 1) for row in rows]
            return pa.concat_arrays([column.slice(0, 0), *parts])

    return pa.RecordBatch.from_arrays([of(column) for column in batch.columns], schema=batch.schema)


@dataclass(slots=True, repr=False)
class Skipped:
    """Count of declared rows that contribute nothing, and limit of the time that rows may take.

    Attributes:
        rows: private: whether a row fails is a fact about it.
        row_limit_s: of one row that is tried alone; public, the same for all rows.
        until_s: by `time.monotonic`, when reading and preparing all rows has to be over; public.
    """

    rows: int = 0
    row_limit_s: float = ROW_LIMIT_S
    until_s: float = math.inf

    @classmethod
    def within(cls, limit_s: float | None, n_units: int) -> Self:
        """Half of the time is for rows that are tried one by one, shared out by the declared number
        of units; so one that takes long costs its own share, whatever the others take."""
        if limit_s is None:
            return cls()
        each_s = max(_ROW_LEAST_S, min(ROW_LIMIT_S, limit_s / 2 / max(1, n_units)))
        return cls(row_limit_s=each_s, until_s=monotonic() + limit_s)

    def check(self) -> None:
        """Raise TimeLimitError once the time for all rows is over."""
        if monotonic() > self.until_s:
            raise TimeLimitError(
                "the rows could not be prepared in the time that the gateway allows; make `select` "
                "simpler"
            )


def attempted(call: Callable[[], T]) -> T | None:
    """Return what `call()` returns; None if it raises anything but what ends the process.

    By structure and not by class: whatever a library raises over a row, a MemoryError or a panic of
    one in Rust, which is no Exception, says something about that row.
    """
    try:
        return call()
    except _STOPS:
        raise
    except BaseException:
        return None


def surviving(
    batch: pa.RecordBatch,
    attempt: Callable[[pa.RecordBatch], pa.RecordBatch | None],
    skipped: Skipped,
) -> Iterator[pa.RecordBatch]:
    """Yield what `attempt` makes of the rows that it can be made of; the others are left out.

    Guarantee: a row is left out only if `attempt` fails for that row alone: if it gives None, or
    raises anything at all. Where it fails on several rows they are divided (`parts`), so that no
    row takes another one with it.

    Raises TimeLimitError once the time for all rows is over, whatever `attempt` does.
    """
    skipped.check()
    result = attempted(lambda: attempt(batch)) if batch.num_rows else None
    if result is not None:
        yield result
    elif batch.num_rows > 1:
        for part in parts(batch):
            yield from surviving(part, attempt, skipped)
    else:
        skipped.rows += batch.num_rows


def parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch divided into eighths. A row that never ends fails each batch that it is in: of halves
    there would be three times as many, and each has to be waited for."""
    size = -(-batch.num_rows // _PARTS)
    for start in range(0, batch.num_rows, size):
        yield batch.slice(start, size)


def not_empty(rows: Rows, label: str) -> Rows:
    """Return the same rows once at least one is there; raises DataError if there is none."""
    first = next(rows.batches, None)
    if first is None:
        raise DataError(f"{label} holds no rows; give at least one")
    return Rows(rows.schema, _chain(first, rows.batches))


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    del first
    yield from rest


def unique_columns(schema: pa.Schema, label: str) -> None:
    """Raise DataError if two columns share a name, `text_field` could mean either; or if one has
    the name UNIT. Names that differ in case only are two names."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"{label} has two columns named {twice[0]!r}; rename one of them")
    if any(folded(name) == UNIT for name in schema.names):
        raise DataError(f"{label} has a column named {UNIT}, a name that is taken; rename it")


def folded(name: str) -> str:
    """A name without regard to the case of ASCII letters, as DuckDB compares names: `É` and `é`
    are two names to it as well."""
    return name.translate(_LOWER)


def same_names(name: str, names: Iterable[str]) -> list[str]:
    """Names among `names` that a reference may mean: the one that is written exactly so, else all
    that differ in case only. Several are for the caller to refuse."""
    loose = {candidate for candidate in names if folded(candidate) == folded(name)}
    return [name] if name in loose else sorted(loose)


def missing_column(name: str, columns: Sequence[str], remedy: str = "") -> MissingColumnError:
    """The error for a column that is not there, or could be several; names are public."""
    same = same_names(name, columns)
    if len(same) > 1:
        return MissingColumnError(
            f"no column is named {name!r} exactly, and {' and '.join(map(repr, same))} differ from "
            "it in case only; write the one you mean as it is, in double quotes within SQL"
        )
    near = difflib.get_close_matches(name.lower(), [column.lower() for column in columns], n=1)
    match = next((column for column in columns if near and column.lower() == near[0]), None)
    hint = f"; did you mean {match!r}?" if match else ""
    extra = f"; {remedy}" if remedy else ""
    listed = ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
    return MissingColumnError(f"there is no column {name!r} among: {listed}{hint}{extra}")

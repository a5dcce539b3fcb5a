"""Groups rows by privacy unit and bounds how many records one unit contributes.

Everything here works on a stream and in bounded memory; what does not fit is sorted on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from taciturn.engine.data.preparation import UNIT, locked_connection
from taciturn.engine.data.rows import ROWS_PER_BATCH, Rows
from taciturn.errors import DataError, OutputError, TaciturnError

FIRST = "first_of_unit"
"""Boolean column, True in a unit's first row: boundaries travel in the batch (PITFALLS 7)."""

_ROW = "row_number_in_the_stream"
_TABLE = "rows_by_unit"


def single_record_units(rows: Rows) -> Iterator[pa.RecordBatch]:
    """Every record is a unit of its own: append FIRST, True everywhere."""
    for batch in rows.batches:
        yield _with_first(batch, np.ones(batch.num_rows, dtype=np.bool_))


def grouped(rows: Rows, limit: int, seed: int, spill: Path) -> Iterator[pa.RecordBatch]:
    """Bring each unit's rows together and keep at most `limit` of them.

    Args:
        rows: rows with a column UNIT, text that is never null.
        limit: records kept of one unit, at most; part of the public spec.
        seed: keys the choice among a unit's own records.
        spill: an existing private folder for what does not fit into memory.

    Yields batches without UNIT and with FIRST, in ascending order of the unit's text; within a unit
    in the order of the stream.

    Guarantee: which of its records a unit keeps depends on that unit's own records, their order,
    `limit` and `seed`. Leaving out every row of one unit leaves what is kept of all others as it
    was, so neighbouring data sets differ in exactly one unit.

    Raises OutputError if the disk is full, and whatever reading `rows` raises.
    """
    return _bounded(_sorted(rows, spill), limit, seed)


def _sorted(rows: Rows, spill: Path) -> Iterator[pa.RecordBatch]:
    """Sort by unit, then by position, on disk if need be."""
    stream = _NumberedStream(rows)
    failure: TaciturnError | None = None
    with locked_connection(spill) as connection:
        connection.register(_TABLE, stream.reader())
        query = f"SELECT * EXCLUDE ({_ROW}) FROM {_TABLE} ORDER BY {UNIT}, {_ROW}"
        batches = iter(connection.sql(query).to_arrow_reader(ROWS_PER_BATCH))
        while True:
            try:
                batch = next(batches, None)
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                failure = stream.failure or _sort_error(error)
            if failure is not None:
                raise failure
            if batch is None:
                return
            yield batch


class _NumberedStream:
    """Rows with their position appended, as a reader for DuckDB.

    DuckDB reads in threads of its own and turns any error into text, with the row that caused it.
    `failure` keeps our own error so that it can be raised instead.
    """

    def __init__(self, rows: Rows) -> None:
        self.failure: TaciturnError | None = None
        self._rows = rows
        self._schema = rows.schema.append(pa.field(_ROW, pa.int64()))

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        position = 0
        try:
            for batch in self._rows.batches:
                numbers = pa.array(np.arange(position, position + batch.num_rows))
                position += batch.num_rows
                yield pa.RecordBatch.from_arrays([*batch.columns, numbers], schema=self._schema)
        except TaciturnError as error:
            self.failure = error
            raise


def _sort_error(error: Exception) -> TaciturnError:
    kind = type(error).__name__
    if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | OSError):
        return OutputError(
            f"rows could not be sorted by privacy unit on disk ({kind}); free space on the disk of "
            "the output folder"
        )
    return DataError(f"rows could not be sorted by privacy unit ({kind})")


@dataclass(frozen=True, slots=True)
class _OpenUnit:
    """The last unit read so far: it may go on in the next batch.

    Attributes:
        rows: its rows, after pruning.
        positions: each row's place among all rows of this unit, also of those already dropped.
        seen: rows of this unit so far.
    """

    rows: pa.RecordBatch
    positions: NDArray[np.int64]
    seen: int


def _bounded(batches: Iterator[pa.RecordBatch], limit: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Keep at most `limit` rows of each run of equal units; a run may span batches."""
    carried: _OpenUnit | None = None
    for batch in batches:
        rows, positions = _joined(carried, batch)
        starts = _starts(rows.column(UNIT))
        last = int(starts[-1])
        if last:
            yield _kept(rows.slice(0, last), positions[:last], starts[:-1], limit, seed)
        carried = _pruned(rows.slice(last), positions[last:], limit, seed)
    if carried is not None:
        yield _kept(carried.rows, carried.positions, np.zeros(1, np.int64), limit, seed)


def _joined(
    carried: _OpenUnit | None, batch: pa.RecordBatch
) -> tuple[pa.RecordBatch, NDArray[np.int64]]:
    """The open unit's rows followed by the batch, and every row's position within its unit."""
    units = batch.column(UNIT)
    starts = _starts(units)
    lengths = np.diff(starts, append=batch.num_rows)
    positions = np.arange(batch.num_rows) - np.repeat(starts, lengths)
    if carried is None:
        return batch, positions
    if units[0].as_py() == carried.rows.column(UNIT)[0].as_py():
        positions[: lengths[0]] += carried.seen
    table = pa.Table.from_batches([carried.rows, batch]).combine_chunks()
    return table.to_batches()[0], np.concatenate([carried.positions, positions])


def _pruned(rows: pa.RecordBatch, positions: NDArray[np.int64], limit: int, seed: int) -> _OpenUnit:
    """Drop rows that can no longer be among the `limit` kept, so that a huge unit fits."""
    seen = int(positions[-1]) + 1
    if rows.num_rows > limit:
        chosen = _chosen(rows.column(UNIT)[0].as_py(), positions, limit, seed)
        rows, positions = rows.take(pa.array(chosen)), positions[chosen]
    return _OpenUnit(rows, positions, seen)


def _kept(
    rows: pa.RecordBatch,
    positions: NDArray[np.int64],
    starts: NDArray[np.int64],
    limit: int,
    seed: int,
) -> pa.RecordBatch:
    """The kept rows of complete units, without UNIT and with FIRST."""
    lengths = np.diff(starts, append=rows.num_rows)
    keep = np.ones(rows.num_rows, dtype=np.bool_)
    for index in np.flatnonzero(lengths > limit):
        start, stop = starts[index], starts[index] + lengths[index]
        keep[start:stop] = False
        unit = rows.column(UNIT)[int(start)].as_py()
        keep[start + _chosen(unit, positions[start:stop], limit, seed)] = True
    counts = np.minimum(lengths, limit)
    first = np.zeros(int(counts.sum()), dtype=np.bool_)
    first[np.cumsum(counts) - counts] = True
    return _with_first(rows.filter(pa.array(keep)).drop_columns([UNIT]), first)


def _chosen(unit: str, positions: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """Indexes, ascending, of the `limit` rows with the smallest keyed hash.

    The hash takes nothing but the unit, the row's place among its unit's rows and the key. Over
    random keys every subset of that size is equally likely.
    """
    key = hashlib.blake2b(
        unit.encode("utf-8", "surrogatepass"), key=seed.to_bytes(16), digest_size=32
    )
    ranks = [
        hashlib.blake2b(int(position).to_bytes(8), key=key.digest(), digest_size=16).digest()
        for position in positions
    ]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    return np.sort(np.array(order[:limit], dtype=np.int64))


def _starts(units: pa.Array) -> NDArray[np.int64]:
    """Indexes at which a run of equal units begins; always holds 0."""
    changes = pa.compute.not_equal(units.slice(1), units.slice(0, len(units) - 1))
    found = np.flatnonzero(changes.to_numpy(zero_copy_only=False)) + 1
    return np.concatenate([np.zeros(1, dtype=np.int64), found])


def _with_first(batch: pa.RecordBatch, first: NDArray[np.bool_]) -> pa.RecordBatch:
    return batch.append_column(FIRST, pa.array(first))

"""Groups rows by privacy unit and bounds how many records one unit contributes.

Works on a stream, in bounded memory: rows are dealt out to files by a hash of their unit, so that
all rows of a unit lie in one file, and each file is then grouped by itself. A file that is still
too large is dealt out again. (DuckDB's external sort was tried first: with long rows it ran out of
its memory limit instead of using the disk.)
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from taciturn.data.rows import UNIT, Rows, sliced

FIRST = "first_of_unit"
"""Boolean column, True in a unit's first row.

Boundaries of units travel in the batch: kept beside it, they are out of date after an interruption.
"""

_PARTITION_BITS = 6
_MOST_LEVELS = 4  # a checksum has bits for four dealings-out; 64 ** 4 files of 64 MiB are enough
_BUFFER_BYTES = 32 << 20
_FILE_BYTES = 64 << 20


def single_record_units(rows: Rows) -> Iterator[pa.RecordBatch]:
    """Every record is a unit of its own: append FIRST, True everywhere."""
    for batch in rows.batches:
        yield batch.append_column(FIRST, pa.array(np.ones(batch.num_rows, dtype=np.bool_)))


def grouped(rows: Rows, limit: int, seed: int, spill: Path) -> Iterator[pa.RecordBatch]:
    """Bring each unit's rows together and keep at most `limit` of them.

    Args:
        rows: rows with a column UNIT, text that is never null.
        limit: records kept of one unit, at most; part of the public spec.
        seed: keys the choice among a unit's own records.
        spill: an existing private folder for rows that wait to be grouped.

    Yields batches without UNIT and with FIRST; a unit's rows follow each other in the order of
    the stream.

    Guarantee: which of its records a unit keeps depends on that unit's name, the number of its
    records and their order, `limit` and `seed`. Leaving out every row of one unit leaves what is
    kept of all others as it was: neighbouring data sets differ in exactly one unit.

    Raises OSError if the disk is full, and whatever reading `rows` raises.
    """
    yield from _grouped(rows, limit, seed, spill, level=0)


def _grouped(
    rows: Rows, limit: int, seed: int, folder: Path, level: int
) -> Iterator[pa.RecordBatch]:
    for file in _dealt_out(rows, folder, level):
        if file.stat().st_size <= _FILE_BYTES or level + 1 == _MOST_LEVELS:
            yield from _bounded(file, rows.schema, limit, seed)
        else:
            below = folder / f"{file.name}.d"
            below.mkdir(mode=0o700)
            again = Rows(rows.schema, _read(file))
            yield from _grouped(again, limit, seed, below, level + 1)
        file.unlink()


def _dealt_out(rows: Rows, folder: Path, level: int) -> list[Path]:
    """Write every row to the file that its unit's checksum names; order is kept in each file."""
    with ExitStack() as stack:
        writers: dict[int, pa.RecordBatchWriter] = {}
        waiting: list[pa.RecordBatch] = []

        def flush() -> None:
            for index, part in _parts(waiting, level):
                if index not in writers:
                    sink = stack.enter_context(pa.OSFile(str(folder / f"{index:02}"), "wb"))
                    writers[index] = stack.enter_context(pa.ipc.new_stream(sink, rows.schema))
                writers[index].write_table(part)
            waiting.clear()

        waiting_bytes = 0
        for batch in rows.batches:
            waiting.append(batch)
            waiting_bytes += batch.nbytes
            if waiting_bytes >= _BUFFER_BYTES:
                flush()
                waiting_bytes = 0
        flush()
    return [folder / f"{index:02}" for index in sorted(writers)]


def _parts(batches: list[pa.RecordBatch], level: int) -> Iterator[tuple[int, pa.Table]]:
    if not batches:
        return
    table = pa.Table.from_batches(batches)
    partitions = _partitions(table.column(UNIT), level)
    order = np.argsort(partitions, kind="stable")
    counts = np.bincount(partitions, minlength=1 << _PARTITION_BITS)
    stops = np.cumsum(counts)
    for index in np.flatnonzero(counts):
        yield int(index), table.take(pa.array(order[stops[index] - counts[index] : stops[index]]))


def _partitions(units: pa.ChunkedArray, level: int) -> NDArray[np.int64]:
    """File number of each row: six bits of a checksum, other ones at every level."""
    sums = (zlib.crc32(unit.encode()) for unit in units.to_pylist())
    checksums = np.fromiter(sums, np.int64, len(units))
    return (checksums >> (level * _PARTITION_BITS)) & ((1 << _PARTITION_BITS) - 1)


def _read(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
        yield from reader


def _bounded(file: Path, schema: pa.Schema, limit: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Group one file's rows. Only kept rows are held: one unit may own more than fits."""
    units = pa.chunked_array([batch.column(UNIT) for batch in _read(file)], pa.string())
    rows, first = _choice(units, limit, seed)
    in_stream = np.sort(rows)
    is_selected = np.zeros(len(units), dtype=np.bool_)
    is_selected[in_stream] = True
    table = _filtered(file, schema, is_selected).drop_columns([UNIT])
    places = pa.array(np.searchsorted(in_stream, rows))
    marked = table.take(places).append_column(FIRST, pa.array(first))
    yield from sliced(iter(marked.to_batches()))


def _filtered(file: Path, schema: pa.Schema, is_selected: NDArray[np.bool_]) -> pa.Table:
    batches = []
    start = 0
    for batch in _read(file):
        batches.append(batch.filter(pa.array(is_selected[start : start + batch.num_rows])))
        start += batch.num_rows
    return pa.Table.from_batches(batches, schema).combine_chunks()


def _choice(
    units: pa.ChunkedArray, limit: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Indexes of the kept rows, unit after unit, and True at each unit's first.

    Units come in the order in which they first occur.
    """
    encoded = units.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    keep = np.ones(len(codes), dtype=np.bool_)
    for code in np.flatnonzero(counts > limit):
        start, count = int(starts[code]), int(counts[code])
        keep[start : start + count] = False
        keep[
            start + _selected_positions(encoded.dictionary[int(code)].as_py(), count, limit, seed)
        ] = True
    kept_counts = np.minimum(counts, limit)
    first = np.zeros(int(kept_counts.sum()), dtype=np.bool_)
    first[np.cumsum(kept_counts) - kept_counts] = True
    return order[keep], first


def _selected_positions(unit: str, count: int, limit: int, seed: int) -> NDArray[np.int64]:
    """Positions, ascending, of the `limit` records with the smallest keyed hash among `count`.

    The hash takes nothing but the unit, the record's place among its unit's records and the key.
    Over random keys every subset of that size is equally likely.
    """
    key = hashlib.blake2b(unit.encode(), key=seed.to_bytes(16), digest_size=32).digest()
    ranks = [
        hashlib.blake2b(position.to_bytes(8), key=key, digest_size=16).digest()
        for position in range(count)
    ]
    order = sorted(range(count), key=ranks.__getitem__)
    return np.sort(np.array(order[:limit], dtype=np.int64))

"""Tokenised records on disk: Arrow IPC, memory-mapped, the records of a unit side by side.

A folder holds

- `tokens.arrow`: one row per record, `input_ids` list<int32> and `targets` list<uint8>;
- `units.arrow`: the index of each unit's first record; in batches, each of which ends with what the
  next one begins with, and the last with the number of records;
- `meta.json`: counts and the fingerprint.

All of it is private.
"""

from __future__ import annotations

import copy
import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from taciturn.data.tokens.encoding import EncodedRecords
from taciturn.errors import CheckpointError

_TOKENS = "tokens.arrow"
_UNITS = "units.arrow"
_META = "meta.json"
_VERSION = 3

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("targets", pa.list_(pa.uint8()))])
_TOKENS_PER_BATCH = 1 << 20
_UNITS_SCHEMA = pa.schema([("first_record", pa.int64())])
_UNITS_PER_BATCH = 1 << 16


@dataclass(frozen=True, slots=True, repr=False)
class TokenizedRecord:
    """One record of T tokens; both arrays are read-only views of the memory map.

    Attributes:
        input_ids: int32 [T].
        targets: bool [T], True where this token is to be predicted; never at position 0.
    """

    input_ids: NDArray[np.int32]
    targets: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Block:
    """One record batch of `tokens.arrow`: its columns' buffers as arrays, and where rows begin."""

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    offsets: NDArray[np.int32]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> _Block:
        ids, targets = batch.column(0), batch.column(1)
        return cls(
            ids.values.to_numpy(),
            targets.values.to_numpy().view(np.bool_),
            ids.offsets.to_numpy(),
        )


class TokenizedDataset:
    """Tokenised privacy units, read at random from a memory map.

    Attributes:
        n_units: number of privacy units.
        n_records: number of records, all units together.
        n_tokens: number of tokens, all records together.
        fingerprint: changes with the data or its public preparation. It is derived from private
            rows: compare it, never print it.
    """

    def __init__(
        self,
        blocks: Sequence[_Block],
        first_records: Sequence[NDArray[np.int64]],
        meta: dict[str, Any],
    ) -> None:
        self.n_units = sum(len(batch) - 1 for batch in first_records)
        self.n_records = int(first_records[-1][-1])
        self.n_tokens = sum(len(block.ids) for block in blocks)
        self.fingerprint = str(meta["fingerprint"])
        self._selection: NDArray[np.int64] | None = None
        self._blocks = blocks
        self._block_starts = [0]
        for block in blocks[:-1]:
            self._block_starts.append(self._block_starts[-1] + len(block.offsets) - 1)
        self._first_records = first_records

    @classmethod
    def open(cls, folder: Path) -> TokenizedDataset:
        """Map the files of `folder`; raises CheckpointError if they are absent or damaged."""
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            blocks = [_Block.of(batch) for batch in _batches(folder / _TOKENS)]
            first_records = [batch.column(0).to_numpy() for batch in _batches(folder / _UNITS)]
        except (OSError, ValueError, KeyError, pa.ArrowException):
            meta = {}
        readable = meta.get("version") == _VERSION and bool(first_records)
        if not readable or meta["n_records"] != int(first_records[-1][-1]):
            raise CheckpointError(
                f"{folder} holds no tokenised data that can be read; prepare it again"
            )
        return cls(blocks, first_records, meta)

    def only(self, units: NDArray[np.int64]) -> TokenizedDataset:
        """Data set of these units alone, in this order; the files stay the same ones."""
        part = copy.copy(self)
        part._selection = units if self._selection is None else self._selection[units]
        part.n_units = len(units)
        lengths = [part.lengths(unit) for unit in range(part.n_units)]
        part.n_records = sum(map(len, lengths))
        part.n_tokens = sum(map(sum, lengths))
        return part

    def records(self, unit: int) -> list[TokenizedRecord]:
        """The records of a unit, as views; raises IndexError outside [0, n_units)."""
        return [self._record(index) for index in self._range(unit)]

    def lengths(self, unit: int) -> list[int]:
        """Tokens of each record of a unit, without touching the tokens."""
        return [stop - start for _, start, stop in map(self._locate, self._range(unit))]

    def __len__(self) -> int:
        return self.n_units

    def __repr__(self) -> str:
        return "TokenizedDataset(private)"

    def _range(self, unit: int) -> range:
        if not 0 <= unit < self.n_units:
            raise IndexError(f"unit {unit} must lie in [0, {self.n_units})")
        if self._selection is not None:
            unit = int(self._selection[unit])
        batch, place = divmod(unit, _UNITS_PER_BATCH)
        first_records = self._first_records[batch]
        return range(int(first_records[place]), int(first_records[place + 1]))

    def _locate(self, record: int) -> tuple[_Block, int, int]:
        index = bisect_right(self._block_starts, record) - 1
        block, row = self._blocks[index], record - self._block_starts[index]
        return block, int(block.offsets[row]), int(block.offsets[row + 1])

    def _record(self, record: int) -> TokenizedRecord:
        block, start, stop = self._locate(record)
        return TokenizedRecord(block.ids[start:stop], block.targets[start:stop])


def _batches(path: Path) -> list[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]


class TokenWriter:
    """Writes encoded records in order, unit after unit; holds about a million tokens at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / _TOKENS).open("wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)
        self._units_file = (folder / _UNITS).open("wb")
        self._units_writer = pa.ipc.new_file(self._units_file, _UNITS_SCHEMA)
        self._waiting: list[EncodedRecords] = []
        self._waiting_tokens = 0
        self._n_records = 0
        self._first_records = np.empty(0, np.int64)
        self._content = tuple(hashlib.sha256() for _ in range(4))

    def add(self, records: EncodedRecords, first: NDArray[np.bool_]) -> None:
        """Append R records; `first` [R] is True where a record opens a new unit."""
        added = (records.input_ids, records.targets, records.lengths, first)
        for digest, values in zip(self._content, added, strict=True):
            digest.update(np.ascontiguousarray(values).data)
        self._add_units(self._n_records + np.flatnonzero(first))
        self._n_records += len(records.lengths)
        self._waiting_tokens += len(records.input_ids)
        self._waiting.append(records)
        if self._waiting_tokens >= _TOKENS_PER_BATCH:
            self._flush()

    def content(self) -> str:
        """SHA-256 of what was added so far: tokens, targets, records and units, however many came
        at a time. It follows from private rows."""
        return hashlib.sha256(
            "".join(digest.hexdigest() for digest in self._content).encode()
        ).hexdigest()

    def close(self, public_spec: str) -> None:
        """Finish all files; `public_spec` says how the data was prepared and enters the hash."""
        self._flush()
        self._writer.close()
        self._file.close()
        self._write_units(np.append(self._first_records, self._n_records))
        self._units_writer.close()
        self._units_file.close()
        meta = {
            "version": _VERSION,
            "n_records": self._n_records,
            "fingerprint": _fingerprint(self._folder, public_spec),
        }
        (self._folder / _META).write_text(json.dumps(meta), encoding="utf-8")

    def abandon(self) -> None:
        """Close the files without finishing them; the folder is the caller's to remove."""
        self._file.close()
        self._units_file.close()

    def _add_units(self, first_records: NDArray[np.int64]) -> None:
        waiting = np.concatenate([self._first_records, first_records])
        while len(waiting) > _UNITS_PER_BATCH:
            self._write_units(waiting[: _UNITS_PER_BATCH + 1])
            waiting = waiting[_UNITS_PER_BATCH:]
        self._first_records = waiting

    def _write_units(self, first_records: NDArray[np.int64]) -> None:
        columns = [pa.array(first_records)]
        self._units_writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_UNITS_SCHEMA))

    def _flush(self) -> None:
        if not self._waiting:
            return
        lengths = np.concatenate([records.lengths for records in self._waiting])
        ids = np.concatenate([records.input_ids for records in self._waiting])
        targets = np.concatenate([records.targets for records in self._waiting])
        offsets = pa.array(np.cumsum(np.insert(lengths, 0, 0)).astype(np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(ids)),
            pa.ListArray.from_arrays(offsets, pa.array(targets.view(np.uint8))),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        self._waiting, self._waiting_tokens = [], 0


def check_whole(folder: Path, public_spec: str) -> None:
    """Raise CheckpointError unless the files of `folder` are those that were written with it."""
    expected = TokenizedDataset.open(folder).fingerprint
    if _fingerprint(folder, public_spec) != expected:
        raise CheckpointError(
            f"the prepared data in {folder} are not as they were written; begin anew in another "
            "output folder"
        )


def _fingerprint(folder: Path, public_spec: str) -> str:
    digest = hashlib.sha256(public_spec.encode())
    for name in (_TOKENS, _UNITS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

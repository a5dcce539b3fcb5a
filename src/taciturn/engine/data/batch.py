"""From drawn units to physical microbatches: whole units, sorted by length, public shapes.

Padded, each record has a row; packed, records share rows (privacy/packing.py). Which of the two a
draw gets follows from the lengths in it, as the shapes of microbatches do.

Shapes: B sequences, T tokens, U units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from taciturn.engine.data.tokenize import TokenizedDataset, TokenizedRecord
from taciturn.engine.privacy.packing import fill_rows
from taciturn.engine.privacy.types import UnitBatch

# Padding that is cheaper than one more microbatch, as a share of the largest microbatch.
_TOLERATED_PADDING = 1 / 16
# In rows of so many tokens attention costs as much as all else: measured at hidden size 256
# (bench/batches.py); in wider models it costs less.
_ATTENTION_TOKENS = 2048
# A packed microbatch in which something is not finite is computed again, padded: then it may take
# so many times the tokens of a microbatch, and with them memory.
_PADDED_AGAIN = 4
# What a token costs more in packed rows, whose masks and groups of rows have to be made.
_PACKED_TOKEN = 1.04


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one physical microbatch may hold. Public; changes speed and memory, never the result.

    Attributes:
        tokens: sequences times padded length, at most (one sequence is always allowed).
        units: whole units, at most: per-unit gradients take units x trainable parameters.
        max_tokens: longest sequence that can occur, from the spec.
        packed: records may share rows, where that costs less.
    """

    tokens: int
    units: int
    max_tokens: int
    packed: bool = False


@dataclass(frozen=True, slots=True)
class _Unit:
    records: list[TokenizedRecord]
    length: int

    @property
    def tokens(self) -> int:
        return sum(map(_length, self.records))


@dataclass(frozen=True, slots=True)
class _Group:
    """Units of one microbatch; `width` of the rows that their records share, None if padded."""

    units: list[_Unit]
    width: int | None = None


def bucket_length(length: int, max_tokens: int) -> int:
    """The padded length for `length` tokens: from a small public set, at most max_tokens.

    The set is 16, 20, 24, 28, 32, 40, 48 ...: each power of two and three steps to the next.
    Padding to the longest record of a batch instead would show that record's length in every
    shape (PITFALLS 23).
    """
    size = 16
    while 2 * size < length:
        size *= 2
    steps = max(0, math.ceil((length - size) / (size // 4)))
    return min(size + steps * (size // 4), max_tokens)


def microbatches(
    dataset: TokenizedDataset, units: NDArray[np.int64], limits: BatchLimits
) -> Iterator[tuple[UnitBatch, ...]]:
    """Split one logical step's units into physical microbatches.

    Each item is one group of whole units; no unit is in two groups. It is a tuple of parts over
    the same units: one part, unless a single unit alone is larger than `limits.tokens`, whose
    sequences are then spread over several parts to be added up before clipping.
    """
    drawn = [_load(dataset, int(unit)) for unit in units]
    drawn.sort(key=lambda unit: unit.length)
    groups = _padded_groups(drawn, limits)
    if limits.packed:
        packed = _packed_groups(drawn, limits)
        groups = min(groups, packed, key=lambda each: sum(_cost(one, limits) for one in each))
    for group in groups:
        yield _parts(group, limits)


def _padded_groups(drawn: Sequence[_Unit], limits: BatchLimits) -> list[_Group]:
    groups: list[_Group] = []
    group: list[_Unit] = []
    for unit in drawn:
        if group and not (_fits([*group, unit], limits) and _wastes_little(group, unit, limits)):
            groups.append(_Group(group))
            group = []
        group.append(unit)
    return [*groups, _Group(group)] if group else groups


def _packed_groups(drawn: Sequence[_Unit], limits: BatchLimits) -> list[_Group]:
    groups: list[_Group] = []
    left = list(drawn)
    while left:
        count = _prefix(left, limits)
        while (group := _packed_group(left[:count], limits)) is None:
            count -= max(1, count // 16)
        groups.append(group)
        left = left[count:]
    return groups


def _prefix(units: Sequence[_Unit], limits: BatchLimits) -> int:
    """How many of the first units could go into one microbatch if no row had room left; not 0."""
    total = 0
    for count, unit in enumerate(units):
        total += unit.tokens
        if count and (total > limits.tokens or count == limits.units):
            return count
    return len(units)


def _packed_group(units: list[_Unit], limits: BatchLimits) -> _Group | None:
    """One microbatch of these units, padded if sharing rows saves none; None if it does not fit."""
    if len(units) == 1 and not _fits(units, limits):
        return _Group(units)
    lengths = [_length(record) for unit in units for record in unit.records]
    width = _row_width(lengths, limits)
    padded = len(lengths) * bucket_length(max(lengths), limits.max_tokens)
    if width is not None and padded <= _PADDED_AGAIN * limits.tokens:
        return _Group(units, width)
    return _Group(units) if _fits(units, limits) else None


def _row_width(lengths: Sequence[int], limits: BatchLimits) -> int | None:
    """The cheapest width of shared rows, from the public set; None if padded rows are as cheap."""
    width = bucket_length(max(lengths), limits.max_tokens)
    best, least = None, math.inf
    if len(lengths) * width <= limits.tokens:
        least = _rows_cost(len(lengths), width) / _PACKED_TOKEN
    while True:
        # Attention alone grows with the width: where even full rows cost more, no wider one helps.
        if _rows_cost(sum(lengths) / width, width) < least:
            rows = len(fill_rows(lengths, width))
            cost = _rows_cost(rows, width)
            if rows < len(lengths) and rows * width <= limits.tokens and cost < least:
                best, least = width, cost
        wider = bucket_length(width + 1, limits.max_tokens)
        if wider == width:
            return best
        width = wider


def _rows_cost(rows: float, width: int) -> float:
    """In tokens of short rows."""
    return rows * width * (1 + width / _ATTENTION_TOKENS)


def _cost(group: _Group, limits: BatchLimits) -> float:
    """Of a whole microbatch, in tokens of short rows."""
    lengths = [_length(record) for unit in group.units for record in unit.records]
    once = limits.tokens * _TOLERATED_PADDING
    if group.width is None:
        width = bucket_length(max(lengths), limits.max_tokens)
        return once + _rows_cost(len(lengths), width)
    rows = len(fill_rows(lengths, group.width))
    return once + _PACKED_TOKEN * _rows_cost(rows, group.width)


def _length(record: TokenizedRecord) -> int:
    return len(record.input_ids)


def _load(dataset: TokenizedDataset, unit: int) -> _Unit:
    records = dataset.records(unit)
    return _Unit(records, max(map(_length, records)))


def _fits(group: Sequence[_Unit], limits: BatchLimits) -> bool:
    sequences = sum(len(unit.records) for unit in group)
    width = bucket_length(max(unit.length for unit in group), limits.max_tokens)
    return len(group) <= limits.units and sequences * width <= limits.tokens


def _wastes_little(group: Sequence[_Unit], longer: _Unit, limits: BatchLimits) -> bool:
    """Whether padding the group to a longer unit costs less than another microbatch would."""
    sequences = sum(len(unit.records) for unit in group)
    width = bucket_length(group[-1].length, limits.max_tokens)
    more = bucket_length(longer.length, limits.max_tokens) - width
    return sequences * more <= limits.tokens * _TOLERATED_PADDING


def _parts(group: _Group, limits: BatchLimits) -> tuple[UnitBatch, ...]:
    units = group.units
    if len(units) > 1 or _fits(units, limits):
        rows = [(record, index) for index, unit in enumerate(units) for record in unit.records]
        batch = collate(rows, len(units), limits.max_tokens)
        if group.width is None:
            return (batch,)
        return (batch.packed([_length(record) for record, _ in rows], group.width),)
    (unit,) = units
    width = bucket_length(unit.length, limits.max_tokens)
    size = max(1, limits.tokens // width)
    chunks = [unit.records[i : i + size] for i in range(0, len(unit.records), size)]
    return tuple(collate([(r, 0) for r in chunk], 1, limits.max_tokens) for chunk in chunks)


def collate(
    rows: Sequence[tuple[TokenizedRecord, int]], n_units: int, max_tokens: int
) -> UnitBatch:
    """Pad records into one microbatch.

    Each record's targets share the weight 1 equally: its loss is the mean over its own targets, so
    a record's scale depends on nothing but itself (PITFALLS 1). A record without targets weighs
    nothing.
    """
    width = bucket_length(max(_length(record) for record, _ in rows), max_tokens)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    weights = np.zeros((len(rows), width), dtype=np.float32)
    for row, (record, _) in enumerate(rows):
        length = _length(record)
        ids[row, :length] = record.input_ids
        targets = int(record.targets.sum())
        if targets:
            weights[row, :length] = record.targets / np.float32(targets)
    unit_of = np.array([unit for _, unit in rows], dtype=np.int64)
    return UnitBatch(
        torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(unit_of), n_units
    )

"""From drawn units to physical microbatches: whole units, sorted by length, public shapes.

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
from taciturn.engine.privacy.types import UnitBatch

# Padding that is cheaper than one more microbatch, as a share of the largest microbatch.
_TOLERATED_PADDING = 1 / 16


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one physical microbatch may hold. Public; changes speed and memory, never the result.

    Attributes:
        tokens: sequences times padded length, at most (one sequence is always allowed).
        units: whole units, at most: per-unit gradients take units x trainable parameters.
        max_tokens: longest sequence that can occur, from the spec.
    """

    tokens: int
    units: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class _Unit:
    records: list[TokenizedRecord]
    length: int


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
    group: list[_Unit] = []
    for unit in drawn:
        if group and not (_fits([*group, unit], limits) and _wastes_little(group, unit, limits)):
            yield _parts(group, limits)
            group = []
        group.append(unit)
    if group:
        yield _parts(group, limits)


def _load(dataset: TokenizedDataset, unit: int) -> _Unit:
    records = dataset.records(unit)
    return _Unit(records, max(len(record.input_ids) for record in records))


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


def _parts(group: Sequence[_Unit], limits: BatchLimits) -> tuple[UnitBatch, ...]:
    if len(group) > 1 or _fits(group, limits):
        rows = [(record, index) for index, unit in enumerate(group) for record in unit.records]
        return (collate(rows, len(group), limits.max_tokens),)
    (unit,) = group
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
    width = bucket_length(max(len(record.input_ids) for record, _ in rows), max_tokens)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    weights = np.zeros((len(rows), width), dtype=np.float32)
    for row, (record, _) in enumerate(rows):
        length = len(record.input_ids)
        ids[row, :length] = record.input_ids
        targets = int(record.targets.sum())
        if targets:
            weights[row, :length] = record.targets / np.float32(targets)
    unit_of = np.array([unit for _, unit in rows], dtype=np.int64)
    return UnitBatch(
        torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(unit_of), n_units
    )

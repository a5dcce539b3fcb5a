"""Physical microbatches of drawn units: whole units, in constant public shapes.

Arithmetic in batches rounds by the shape of the batch. A microbatch's shape therefore follows from
the unit alone, from public limits and from nothing else in the draw: units of the same padded size
share microbatches of one fixed number of units, and where a draw has too few, public fillers take
the empty places. So a unit's gradient does not change with the company that it is drawn in.

Where the model can tell records of one row apart, a unit's records are packed into as few rows as
hold them, which leaves far less padding. Rows are of one unit each: records of two never meet.

Shapes: B sequences, T tokens, U units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from taciturn.data.tokens.store import TokenizedDataset, TokenizedRecord
from taciturn.engine.privacy.types import UnitBatch

Shape = tuple[int, int, int]
"""Of a microbatch: units, sequences of each, and tokens of a sequence."""

_Row = list[TokenizedRecord]
"""Records of one sequence, one after the other."""

_NARROWEST = 16
_FEWEST = 4
# Units of a draw from which packed rows have less padding and fillers than rows of single records
# (bench/batches.py): they have more lengths, and each may leave a microbatch half empty.
_PACKED_FROM = 32
# Of the longest row that is packed: attention has a mask there, of the square of its tokens.
_PACKED_UP_TO = 4096
PADDED = {4: 1.10, 2: 1.20, 1: 1.44}
"""Padded tokens for each token, by the steps from a power of two to the next, of lengths that are
spread evenly over their logarithm."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of one physical microbatch. Public; changes speed and memory, never the result.

    Attributes:
        tokens: sequences times padded length, at most (one sequence is always allowed).
        units: whole units, at most: per-unit gradients take units x trainable parameters.
        max_tokens: longest sequence that can occur, from the spec.
        places: sequences, at most, of a microbatch of more than `free_tokens` tokens: more of them
            would mostly be fillers. None: as many as there are units.
        free_tokens: so many take no longer than one, where a microbatch takes what starting its
            kernels takes.
        steps: padded lengths from a power of two to the next.
        packed: a sequence may hold several records of its unit.
    """

    tokens: int
    units: int
    max_tokens: int
    places: int | None = None
    free_tokens: int = 0
    steps: int = 4
    packed: bool = False

    def units_of(self, width: int, records: int) -> int:
        """Units of one microbatch, each of `records` sequences of `width` tokens; at least 1."""
        places = self.units if self.places is None else self.places
        useful = max(places // records, self.free_tokens // (width * records))
        fitting = min(self.tokens // (width * records), self.units // records, useful)
        return _divisible(max(1, fitting))

    @property
    def widths(self) -> tuple[int, ...]:
        """All padded lengths, from short to long."""
        return widths(self.max_tokens, self.steps)

    def shapes(self, records: int = 1) -> list[Shape]:
        """All shapes of microbatches of whole units, each of `records` records at most.

        What is larger than a microbatch is computed in parts, and not among them.
        """
        return [
            (self.units_of(width, count), count, width)
            for count in padded_counts(records)
            for width in self.widths
            if count == 1 or width * count <= self.tokens
        ]


def gains_by_packing(units: int, records: int, max_tokens: int) -> bool:
    """True if rows of several records are fewer tokens to compute than rows of one.

    Args:
        units: of a draw, expected.
        records: of a unit, at most.
    """
    return records > 1 and units >= _PACKED_FROM and max_tokens <= _PACKED_UP_TO


def padded_counts(records: int) -> tuple[int, ...]:
    """All numbers of sequences that a unit of at most `records` records is given: 1, 2, 3, 4, 6."""
    return tuple(sorted({_stepped(number, 2) for number in range(1, records + 1)}))


def filled_units(expected_batch_size: int, max_tokens: int, steps: int = 4) -> int:
    """Units of a microbatch that leave few places for fillers in a draw of this expected size.

    The last microbatch of each padded length is half full on average: with this many places,
    fillers are at most about a quarter of a large draw that has every length. In a small draw they
    may be more: fewer than four short records at once cost more time than fillers do.
    """
    return max(_FEWEST, expected_batch_size // (2 * len(widths(max_tokens, steps))))


def widths(max_tokens: int, steps: int = 4) -> tuple[int, ...]:
    """All padded lengths, from short to long: 16, 20, 24, 28, 32, 40, 48 ... `max_tokens`."""
    lengths = [bucket_length(1, max_tokens, steps)]
    while lengths[-1] < max_tokens:
        lengths.append(bucket_length(lengths[-1] + 1, max_tokens, steps))
    return tuple(lengths)


def width_steps(expected_batch_size: int, max_tokens: int, free_tokens: int) -> int:
    """Padded lengths from a power of two to the next, 4, 2 or 1, with which a draw is fastest.

    Each length costs a microbatch more, which takes the time of at least `free_tokens` tokens;
    fewer lengths cost padding. Records are taken to be a quarter of `max_tokens` long.
    """
    tokens = expected_batch_size * max_tokens / 4
    return min(
        PADDED,
        key=lambda steps: len(widths(max_tokens, steps)) * free_tokens + PADDED[steps] * tokens,
    )


def bucket_length(length: int, max_tokens: int, steps: int = 4) -> int:
    """The padded length for `length` tokens: from a small public set, at most max_tokens.

    The set is 16, 20, 24, 28, 32, 40, 48 ...: each power of two and three steps to the next; with
    fewer `steps`, fewer. Padding to the longest record of a batch instead would show that record's
    length in every shape.
    """
    return min(_stepped(max(length, _NARROWEST), steps), max_tokens)


def padded_size(lengths: Sequence[int], max_tokens: int, steps: int = 4) -> tuple[int, int]:
    """The padded length and number of sequences of a unit with records of these lengths.

    The numbers are 1, 2, 3, 4, 6, 8, 12, 16 ...
    """
    return bucket_length(max(lengths), max_tokens, steps), _stepped(len(lengths), 2)


def _stepped(number: int, steps: int) -> int:
    """Up, to a power of two or one of the even steps from it to the next."""
    step = max(1, (1 << (number - 1).bit_length()) // (2 * steps))
    return -(-number // step) * step


def _divisible(number: int) -> int:
    """Down, to 1, 2, 3, 4, 6, 8, 12, 16, 24 ...: what can be split evenly in many ways."""
    power = 1 << (number.bit_length() - 1)
    return power * 3 // 2 if 2 * number >= 3 * power else power


def microbatches(
    dataset: TokenizedDataset, units: NDArray[np.int64], limits: BatchLimits
) -> Iterator[tuple[UnitBatch, ...]]:
    """Split one logical step's units into physical microbatches, short units first.

    Each item is one group of whole units; no unit is in two groups. It is a tuple of parts over
    the same units: one part, unless a single unit alone is larger than `limits.tokens`, whose
    sequences are then spread over several parts to be added up before clipping.

    Guarantee: the shapes of the parts that hold a unit follow from that unit's own records and
    from `limits`.
    """
    sizes: dict[tuple[int, int], list[list[_Row]]] = defaultdict(list)
    for unit in units:
        rows = _rows(dataset.records(int(unit)), limits)
        sizes[padded_size([*map(_tokens, rows)], limits.max_tokens, limits.steps)].append(rows)
    for (width, count), units_of_size in sorted(sizes.items()):
        if width * count > limits.tokens:
            yield from (_parts(rows, width, limits) for rows in units_of_size)
            continue
        places = limits.units_of(width, count)
        for start in range(0, len(units_of_size), places):
            some = units_of_size[start : start + places]
            yield (_filled(some, places, count, width, packed=limits.packed),)


def alone(
    groups: Iterable[tuple[UnitBatch, ...]], units_of_groups: Sequence[Sequence[int]]
) -> Iterator[tuple[UnitBatch, ...]]:
    """A group of its own for each of some units of `groups`, in the width that it has there.

    Args:
        groups: not touched if there are no such units.
        units_of_groups: the units of each group, by their places in it.
    """
    if not any(units_of_groups):
        return
    for group, units in zip(groups, units_of_groups, strict=True):
        for unit in units:
            yield tuple(part.alone(unit) for part in group)


def _rows(records: Sequence[TokenizedRecord], limits: BatchLimits) -> list[_Row]:
    """A unit's records in rows: each in its own, or packed, the longest first, where there is room.

    First fit decreasing (Johnson 1973): at most 11/9 of the fewest rows, and one.
    """
    if not limits.packed:
        return [[record] for record in records]
    rows: list[_Row] = []
    for record in sorted(records, key=_length, reverse=True):
        fitting = (row for row in rows if _tokens(row) + _length(record) <= limits.max_tokens)
        row = next(fitting, None)
        if row is None:
            rows.append([record])
        else:
            row.append(record)
    return rows


def _parts(rows: Sequence[_Row], width: int, limits: BatchLimits) -> tuple[UnitBatch, ...]:
    """One unit's rows, in parts of as many sequences each."""
    most = max(1, limits.tokens // width)
    chunks = [rows[start : start + most] for start in range(0, len(rows), most)]
    return tuple(_filled([chunk], 1, most, width, packed=limits.packed) for chunk in chunks)


def _filled(
    units: Sequence[Sequence[_Row]], places: int, count: int, width: int, *, packed: bool
) -> UnitBatch:
    """A microbatch of `places` units of `count` sequences of `width` tokens.

    Fillers are rows of token 0 without a target: their loss and gradient are zero.
    """
    ids = np.zeros((places * count, width), dtype=np.int64)
    weights = np.zeros((places * count, width), dtype=np.float32)
    positions = np.tile(np.arange(width), (places * count, 1))
    for place, rows in enumerate(units):
        for row, records in enumerate(rows, start=place * count):
            start = 0
            for record in records:
                _write(record, ids[row, start:], weights[row, start:])
                # What follows the last record is taken for more of it: nothing attends to that.
                positions[row, start:] = np.arange(width - start)
                start += _length(record)
    return UnitBatch(
        torch.from_numpy(ids),
        torch.from_numpy(weights),
        torch.arange(places).repeat_interleave(count),
        places,
        n_fillers=places - len(units),
        n_records=sum(len(row) for rows in units for row in rows),
        positions_BT=torch.from_numpy(positions) if packed else None,
    )


def collate(
    rows: Sequence[tuple[TokenizedRecord, int]], n_units: int, max_tokens: int
) -> UnitBatch:
    """Pad records, each with its unit, into one batch without fillers."""
    width = bucket_length(max(_length(record) for record, _ in rows), max_tokens)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    weights = np.zeros((len(rows), width), dtype=np.float32)
    for row, (record, _) in enumerate(rows):
        _write(record, ids[row], weights[row])
    unit_of = np.array([unit for _, unit in rows], dtype=np.int64)
    return UnitBatch(
        torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(unit_of), n_units
    )


def _write(
    record: TokenizedRecord, ids_T: NDArray[np.int64], weights_T: NDArray[np.float32]
) -> None:
    """Begin a row, or the rest of one, with a record.

    Its targets share the weight 1 equally: its loss is the mean over its own targets, so a
    record's scale depends on nothing but itself. A record without targets weighs nothing.
    """
    length = _length(record)
    ids_T[:length] = record.input_ids
    targets = int(record.targets.sum())
    if targets:
        weights_T[:length] = record.targets / np.float32(targets)


def _length(record: TokenizedRecord) -> int:
    return len(record.input_ids)


def _tokens(row: _Row) -> int:
    return sum(map(_length, row))

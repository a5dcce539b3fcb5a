"""Records side by side in rows without padding between them; attention stays within each.

A transformer takes packed rows as they are: position ids that start again at 0 tell it where a
record begins, and its mask lets no token see another record's. Then the values of masked tokens
are multiplied by zeros, so a record is as independent of its neighbours as in a row of its own,
with one exception: zero times NaN or infinity is NaN. `per_example` sees to that.

Shapes: B records, T tokens, R rows of L tokens, N = R * L tokens of a packed batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """The tokens of a batch, packed. Private, as the batch is.

    Attributes:
        input_ids_RL: token ids; what is left over at a row's end is padding. int64.
        loss_weights_RL: as in the batch; 0 for padding and each record's first token.
        position_ids_RL: a token's place in its record; padding counts as a record. int64.
        record_RL: the record (0 .. B-1) of each token, B for padding. int64.
        starts: where each record's first token is among the N tokens.
        lengths: tokens of each record.
    """

    input_ids_RL: Tensor
    loss_weights_RL: Tensor
    position_ids_RL: Tensor
    record_RL: Tensor
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(
        cls, input_ids_BT: Tensor, loss_weights_BT: Tensor, lengths: Sequence[int], width: int
    ) -> Packing:
        """Pack the first `lengths` tokens of each record into rows of `width` tokens.

        Raises:
            ValueError: a record is empty or longer than a row.
        """
        rows = fill_rows(lengths, width)
        starts = [0] * len(lengths)
        shape = (len(rows), width)
        ids, weights = input_ids_BT.new_zeros(shape), loss_weights_BT.new_zeros(shape)
        positions = torch.arange(width).repeat(len(rows), 1)
        records = torch.full(shape, len(lengths))
        for row, members in enumerate(rows):
            at = 0
            for record in members:
                stop = at + lengths[record]
                starts[record] = row * width + at
                ids[row, at:stop] = input_ids_BT[record, : lengths[record]]
                # The first token is predicted by none, and must not be by the record before it.
                weights[row, at + 1 : stop] = loss_weights_BT[record, 1 : lengths[record]]
                records[row, at:stop] = record
                positions[row, at:] -= positions[row, at].clone()
                at = stop
            if at < width:
                positions[row, at:] -= positions[row, at].clone()
        return cls(ids, weights, positions, records, tuple(starts), tuple(lengths))

    @property
    def shape(self) -> tuple[int, int]:
        """(R, L)."""
        rows, width = self.input_ids_RL.shape
        return rows, width

    def to(self, device: torch.device) -> Packing:
        """The same on another device."""
        return Packing(
            self.input_ids_RL.to(device),
            self.loss_weights_RL.to(device),
            self.position_ids_RL.to(device),
            self.record_RL.to(device),
            self.starts,
            self.lengths,
        )


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which records go into which row: the longest first, each into the first row with room.

    First fit decreasing needs at most 11/9 of the fewest possible rows, plus one (Johnson 1973).
    """
    if not all(1 <= length <= width for length in lengths):
        raise ValueError(f"records must have 1 to {width} tokens to go into rows of {width}")
    rows: list[list[int]] = []
    room: list[int] = []
    for record in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        length = lengths[record]
        row = next((row for row, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(record)
        room[row] -= length
    return rows

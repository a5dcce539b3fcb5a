"""How rows of activations belong to sequences, and sequences to units.

In packed rows (packing.py) each token counts as a sequence of one token: then nothing but the token
says whose it is, and tokens of no unit, padding, are left out of every norm and sum.

Shapes: B sequences, T tokens, R rows of a sequence, U units, G units of a group with K sequences
each, P output features, D input features, V rows of a table.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taciturn.engine.privacy.packing import Packing
from taciturn.errors import UnsupportedLayerError


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """The units that have K sequences each.

    Attributes:
        units_G: their numbers. int64.
        sequences_GK: the sequences of each. int64.
        whole: these are all sequences of the batch, in order, so that a view does for a copy.
        filler: which of the G * K places no sequence is for; None: none. Units of about as many
            sequences are in one group, and those with fewer get zeros.
    """

    units_G: Tensor
    sequences_GK: Tensor
    whole: bool
    filler: Tensor | None = None

    def rows(self, value: Tensor) -> Tensor:
        """[B, R, ...] -> [G, K * R, ...]: all rows of a unit side by side."""
        chosen = value if self.whole else value[self.sequences_GK.flatten()]
        if self.filler is not None:
            chosen.index_fill_(0, self.filler, 0)
        return chosen.reshape(len(self.units_G), -1, *value.shape[2:])


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The rows, sequences and units of one microbatch.

    Attributes:
        shape: (B, T), what activations begin with; of packed rows their number and width.
        tokens: T, padded length of a sequence; 1 in packed rows.
        n_units: U.
        unit_of_B: the unit of each sequence; U if it is padding, of packed rows only.
        groups: the units by their number of sequences; a unit without a sequence is in none.
        packed: each token of packed rows is a sequence.
    """

    shape: tuple[int, int]
    tokens: int
    n_units: int
    unit_of_B: Tensor
    groups: tuple[UnitGroup, ...]
    packed: bool = False

    @classmethod
    def of(cls, tokens: int, n_units: int, unit_of_B: Tensor) -> BatchLayout:
        """The layout of a microbatch of sequences of `tokens` tokens."""
        sequences: dict[int, list[int]] = defaultdict(list)
        for sequence, unit in enumerate(unit_of_B.tolist()):
            sequences[unit].append(sequence)
        by_count: dict[int, list[int]] = defaultdict(list)
        for unit in sorted(sequences):
            by_count[len(sequences[unit])].append(unit)
        groups = tuple(
            _group(units, [sequences[unit] for unit in units], n_units, unit_of_B)
            for _, units in sorted(by_count.items())
        )
        return cls((len(unit_of_B), tokens), tokens, n_units, unit_of_B, groups)

    @classmethod
    def of_packed(cls, packing: Packing, n_units: int, unit_of_record: Tensor) -> BatchLayout:
        """The layout of packed rows; each token is a sequence."""
        rows, width = packing.shape
        unit_of_N = np.full(rows * width, n_units)
        tokens: dict[int, list[range]] = defaultdict(list)
        for record, unit in enumerate(unit_of_record.tolist()):
            start = packing.starts[record]
            tokens[unit].append(range(start, start + packing.lengths[record]))
            unit_of_N[start : start + packing.lengths[record]] = unit
        by_count: dict[int, list[int]] = defaultdict(list)
        for unit in sorted(tokens):
            by_count[_rounded(sum(map(len, tokens[unit])))].append(unit)
        device = unit_of_record.device
        groups = tuple(
            _filled_group(units, [tokens[unit] for unit in units], count, device)
            for count, units in sorted(by_count.items())
        )
        return cls((rows, width), 1, n_units, torch.from_numpy(unit_of_N).to(device), groups, True)

    @property
    def sequences(self) -> int:
        """B, the number of sequences."""
        return len(self.unit_of_B)

    @property
    def rows_per_unit(self) -> int:
        """Tokens of a unit for whom Gram matrices cost what they do in the mean."""
        counts = [(len(g.units_G), self.tokens * g.sequences_GK.shape[1]) for g in self.groups]
        units = sum(units for units, _ in counts)
        if not self.packed or not units:
            return max((rows for _, rows in counts), default=0)
        return round(math.sqrt(sum(some * rows**2 for some, rows in counts) / units))

    def split(self, value: Tensor, name: str) -> Tensor:
        """View activations [B, ..., D] or [B*T, D] as [B, R, D]; packed ones [rows, width, ..., D].

        Raises:
            UnsupportedLayerError: `value`, which meets parameter `name`, has another layout.
        """
        n, t = self.shape
        # Whatever a padded row holds is its sequence's; in packed rows the tokens must come second.
        leads = value.shape[:2] == self.shape if self.packed else value.shape[0] == n
        if value.ndim >= 3 and leads:
            return value.reshape(self.sequences, -1, value.shape[-1])
        if value.ndim == 2 and value.shape[0] == n * t:
            return value.reshape(self.sequences, self.tokens, value.shape[-1])
        raise UnsupportedLayerError(
            f"parameter {name!r} meets activations of shape {tuple(value.shape)}, which do not "
            f"split into {n} {'packed rows' if self.packed else 'sequences'} of {t} tokens; its "
            "per-unit gradient is not known. Leave it out of the trained parameters, for "
            "example with target_modules"
        )

    def expand(self, value: Tensor) -> Tensor:
        """Repeat a broadcast input [1, ...] for each sequence; a view (PITFALLS 10)."""
        if value.ndim >= 2 and value.shape[0] == 1 and self.shape[0] > 1:
            return value.expand(self.shape[0], *value.shape[1:])
        return value

    def of_sequences(self, value_U: Tensor) -> Tensor:
        """What holds for each unit, for each of its sequences, [B]; zero for padding."""
        if self.packed:
            value_U = torch.cat([value_U, value_U.new_zeros(1)])
        return value_U[self.unit_of_B]

    def sums(self, value_BRD: Tensor) -> Tensor:
        """Sum over each unit's rows; [U, D]."""
        if self._is_whole:
            return self.groups[0].rows(value_BRD).sum(1)
        sums_BD = value_BRD.sum(1)
        # One row more, for padding.
        sums_UD = sums_BD.new_zeros(self.n_units + 1, sums_BD.shape[1])
        return sums_UD.index_add_(0, self.unit_of_B, sums_BD)[: self.n_units]

    def products(self, left_BRP: Tensor, right_BRD: Tensor) -> Tensor:
        """Sum of left right^T over each unit's rows; [U, P, D]."""
        if self._is_whole:
            return _products(self.groups[0], left_BRP, right_BRD)
        shape = (self.n_units, left_BRP.shape[-1], right_BRD.shape[-1])
        out_UPD = left_BRP.new_zeros(shape)
        for group in self.groups:
            out_UPD[group.units_G] = _products(group, left_BRP, right_BRD)
        return out_UPD

    def lookups(self, ids_BR: Tensor, right_BRD: Tensor, table_rows: int) -> Tensor:
        """Sum of the rows that each unit's ids select, `right` being what is added; [U, V, D]."""
        unit_of_B = self.unit_of_B
        if self.packed:
            kept_B = unit_of_B < self.n_units
            unit_of_B, ids_BR, right_BRD = unit_of_B[kept_B], ids_BR[kept_B], right_BRD[kept_B]
        offsets_B1 = (unit_of_B * table_rows).unsqueeze(1)
        flat_N, d = (ids_BR + offsets_B1).flatten(), right_BRD.shape[-1]
        out = right_BRD.new_zeros(self.n_units * table_rows, d)
        out.index_add_(0, flat_N, right_BRD.reshape(-1, d))
        return out.view(self.n_units, table_rows, d)

    @property
    def _is_whole(self) -> bool:
        return len(self.groups) == 1 and self.groups[0].whole


def _group(
    units: list[int], sequences: list[list[int]], n_units: int, unit_of_B: Tensor
) -> UnitGroup:
    in_order = [each for row in sequences for each in row] == list(range(len(unit_of_B)))
    device = unit_of_B.device
    return UnitGroup(
        torch.tensor(units, device=device),
        torch.tensor(sequences, device=device),
        whole=in_order and len(units) == n_units,
    )


def _filled_group(
    units: list[int], tokens: Sequence[Sequence[range]], count: int, device: torch.device
) -> UnitGroup:
    """Of units with at most `count` tokens each, in packed rows."""
    places_GK = np.full((len(units), count), -1)
    for row, ranges in enumerate(tokens):
        own = np.concatenate(ranges)
        places_GK[row, : len(own)] = own
    filler = torch.from_numpy(np.flatnonzero(places_GK < 0)).to(device)
    return UnitGroup(
        torch.tensor(units, device=device),
        torch.from_numpy(places_GK.clip(min=0)).to(device),
        whole=False,
        filler=filler if len(filler) else None,
    )


def _rounded(count: int) -> int:
    """Up, to one of 4, 8 ... 32, 40 ... 64, 80 ...: so few sizes of groups."""
    step = 1 << max(2, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def _products(group: UnitGroup, left_BRP: Tensor, right_BRD: Tensor) -> Tensor:
    return torch.bmm(group.rows(left_BRP).transpose(1, 2), group.rows(right_BRD))

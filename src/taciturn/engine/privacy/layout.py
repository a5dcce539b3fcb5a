"""How rows of activations belong to sequences, and sequences to units.

Shapes: B sequences, T tokens, R rows of a sequence, U units, G units of a group with K sequences
each, P output features, D input features, V rows of a table.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taciturn.errors import UnsupportedLayerError


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """The units that have K sequences each.

    Attributes:
        units_G: their numbers. int64.
        sequences_GK: the sequences of each. int64.
        whole: these are all sequences of the batch, in order, so that a view does for a copy.
    """

    units_G: Tensor
    sequences_GK: Tensor
    whole: bool

    def rows(self, value: Tensor) -> Tensor:
        """[B, R, ...] -> [G, K * R, ...]: all rows of a unit side by side."""
        if self.whole and len(value) == len(self.units_G):
            return value
        chosen = value if self.whole else value[self.sequences_GK.flatten()]
        return chosen.reshape(len(self.units_G), -1, *value.shape[2:])


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The rows, sequences and units of one microbatch.

    Attributes:
        shape: (B, T), what activations begin with.
        n_units: U.
        unit_of_B: the unit of each sequence.
        groups: the units by their number of sequences; a unit without a sequence is in none.
    """

    shape: tuple[int, int]
    n_units: int
    unit_of_B: Tensor
    groups: tuple[UnitGroup, ...]

    @classmethod
    def of(cls, tokens: int, n_units: int, unit_of_B: Tensor) -> BatchLayout:
        """The layout of a microbatch of sequences of `tokens` tokens.

        Of a tensor on a GPU this waits for the device; `to` takes there what was made before.
        """
        sequences: dict[int, list[int]] = defaultdict(list)
        for sequence, unit in enumerate(unit_of_B.numpy(force=True).tolist()):
            sequences[unit].append(sequence)
        by_count: dict[int, list[int]] = defaultdict(list)
        for unit in sorted(sequences):
            by_count[len(sequences[unit])].append(unit)
        groups = tuple(
            _group(units, [sequences[unit] for unit in units], n_units, unit_of_B)
            for _, units in sorted(by_count.items())
        )
        return cls((len(unit_of_B), tokens), n_units, unit_of_B, groups)

    def to(self, device: torch.device) -> BatchLayout:
        """The same layout on another device, without waiting for it."""
        groups = tuple(
            UnitGroup(copied(each.units_G, device), copied(each.sequences_GK, device), each.whole)
            for each in self.groups
        )
        return BatchLayout(self.shape, self.n_units, copied(self.unit_of_B, device), groups)

    @property
    def tokens(self) -> int:
        """T, padded length of a sequence."""
        return self.shape[1]

    @property
    def rows_per_unit(self) -> int:
        """Tokens of the unit that has most."""
        return max((self.tokens * group.sequences_GK.shape[1] for group in self.groups), default=0)

    def split(self, value: Tensor, name: str) -> Tensor:
        """View activations [B, ..., D] or [B*T, D] as [B, R, D].

        Raises:
            UnsupportedLayerError: `value`, which meets parameter `name`, has another layout.
        """
        b, t = self.shape
        if value.ndim == 3 and value.shape[0] == b:
            return value
        if value.ndim > 3 and value.shape[0] == b:
            return value.reshape(b, -1, value.shape[-1])
        if value.ndim == 2 and value.shape[0] == b * t:
            return value.reshape(b, t, value.shape[-1])
        raise UnsupportedLayerError(
            f"parameter {name!r} meets activations of shape {tuple(value.shape)}, which do not "
            f"split into {b} sequences of {t} tokens; its per-unit gradient is not known. Leave "
            "it out of the trained parameters, for example with target_modules"
        )

    def expand(self, value: Tensor) -> Tensor:
        """Repeat a broadcast input [1, ...] for each sequence; a view."""
        if value.ndim >= 2 and value.shape[0] == 1 and self.shape[0] > 1:
            return value.expand(self.shape[0], *value.shape[1:])
        return value

    def of_sequences(self, value_U: Tensor) -> Tensor:
        """What holds for each unit, for each of its sequences, [B]."""
        return value_U[self.unit_of_B]

    def sums(self, value_BRD: Tensor) -> Tensor:
        """Sum over each unit's rows; [U, D]."""
        if self._is_whole:
            return self.groups[0].rows(value_BRD).sum(1)
        sums_BD = value_BRD.sum(1)
        sums_UD = sums_BD.new_zeros(self.n_units, sums_BD.shape[1])
        return sums_UD.index_add_(0, self.unit_of_B, sums_BD)

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
        offsets_B1 = (self.unit_of_B * table_rows).unsqueeze(1)
        flat_N, d = (ids_BR + offsets_B1).flatten(), right_BRD.shape[-1]
        out = right_BRD.new_zeros(self.n_units * table_rows, d)
        out.index_add_(0, flat_N, right_BRD.reshape(-1, d))
        return out.view(self.n_units, table_rows, d)

    @property
    def _is_whole(self) -> bool:
        return len(self.groups) == 1 and self.groups[0].whole


def copied(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`. From the CPU to a GPU nobody waits: neither host nor device."""
    if value.device.type == "cpu" and device.type == "cuda":
        # Only out of pinned memory is a copy made behind the host's back. The allocator of pinned
        # memory gives it to nobody else before the copy is done.
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def _group(
    units: list[int], sequences: list[list[int]], n_units: int, unit_of_B: Tensor
) -> UnitGroup:
    in_order = [each for row in sequences for each in row] == list(range(len(unit_of_B)))
    device = unit_of_B.device
    return UnitGroup(
        torch.from_numpy(np.array(units)).to(device),
        torch.from_numpy(np.array(sequences)).to(device),
        whole=in_order and len(units) == n_units,
    )


def _products(group: UnitGroup, left_BRP: Tensor, right_BRD: Tensor) -> Tensor:
    return torch.bmm(group.rows(left_BRP).transpose(1, 2), group.rows(right_BRD))

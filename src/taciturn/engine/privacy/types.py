"""The values that cross the privacy boundary; each step of the proof has its own type.

UnitBatch -> PerUnitGradients -> BoundedSum -> PrivateGradient, one direction only. A function that
takes a later type cannot be called with an earlier one, and mypy says so before anything runs.
Each type is constructed in one module only (tests/contracts/test_construction.py).

Shapes: B sequences, T tokens, U units, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taciturn.engine.privacy.factors import FactoredGradients
from taciturn.engine.privacy.layout import BatchLayout, copied


@dataclass(frozen=True, slots=True)
class UnitBatch:
    """One physical microbatch of whole units. Private.

    The boundaries between units travel with the batch: there is no queue of flags that could go
    stale.

    Attributes:
        input_ids_BT: token ids, right-padded. int64.
        loss_weights_BT: weight of predicting token t from those before it; 0 for padding, prompts
            and a record's first token. Depends on the record itself or on public constants only.
            float32.
        unit_of_B: the unit (0 .. n_units-1) each sequence belongs to. int64.
        n_units: U, number of units in this microbatch, fillers among them.
        n_fillers: how many of the last units are public and weigh nothing: they are there so that
            the shape tells nothing, and rounds nothing differently.
        n_records: records in it; None: each sequence is one.
        laid_out: the layout, if it was made before the batch went to its device.
        positions_BT: each token's place in its record, where a sequence may hold several records of
            its unit, one after the other; None: each sequence is one. int64.
    """

    input_ids_BT: Tensor
    loss_weights_BT: Tensor
    unit_of_B: Tensor
    n_units: int
    n_fillers: int = 0
    n_records: int | None = None
    laid_out: BatchLayout | None = None
    positions_BT: Tensor | None = None

    def __post_init__(self) -> None:
        if self.input_ids_BT.shape != self.loss_weights_BT.shape or self.input_ids_BT.ndim != 2:
            raise ValueError(
                f"input_ids {tuple(self.input_ids_BT.shape)} and loss_weights "
                f"{tuple(self.loss_weights_BT.shape)} must be the same [B, T]"
            )
        if self.positions_BT is not None and self.positions_BT.shape != self.input_ids_BT.shape:
            raise ValueError("positions need one place per token")
        if self.unit_of_B.shape != self.input_ids_BT.shape[:1]:
            raise ValueError("unit_of_B needs one unit per sequence")
        if not 0 <= self.n_fillers <= self.n_units:
            raise ValueError(f"n_fillers={self.n_fillers} must lie in [0, n_units={self.n_units}]")
        if self.laid_out is not None and self.laid_out.unit_of_B is not self.unit_of_B:
            raise ValueError("laid_out is the layout of another batch")
        # On a GPU the look would wait for the device, and every batch comes from the CPU.
        if self.unit_of_B.device.type == "cpu" and not self._units_in_range():
            raise ValueError(f"unit_of_B must lie in [0, n_units={self.n_units})")

    def _units_in_range(self) -> bool:
        units_B = self.unit_of_B.numpy()
        return bool(((units_B >= 0) & (units_B < self.n_units)).all())

    def to(self, device: torch.device) -> UnitBatch:
        """The same microbatch on another device, with its layout; nobody waits for the copy."""
        layout = self.layout.to(device)
        return UnitBatch(
            copied(self.input_ids_BT, device),
            copied(self.loss_weights_BT, device),
            layout.unit_of_B,
            self.n_units,
            self.n_fillers,
            self.n_records,
            layout,
            None if self.positions_BT is None else copied(self.positions_BT, device),
        )

    def alone(self, unit: int) -> UnitBatch:
        """The sequences of one unit, as a microbatch of the same width; of a batch on the CPU."""
        rows_B = torch.from_numpy(np.flatnonzero(self.unit_of_B.numpy() == unit))
        unit_of_B = torch.zeros(len(rows_B), dtype=torch.int64)
        positions_BT = None if self.positions_BT is None else self.positions_BT[rows_B]
        return UnitBatch(
            self.input_ids_BT[rows_B],
            self.loss_weights_BT[rows_B],
            unit_of_B,
            1,
            positions_BT=positions_BT,
        )

    @property
    def layout(self) -> BatchLayout:
        """Which sequences belong to which unit."""
        if self.laid_out is not None:
            return self.laid_out
        return BatchLayout.of(self.input_ids_BT.shape[1], self.n_units, self.unit_of_B)

    @property
    def records(self) -> int:
        """How many records are in it."""
        return len(self.unit_of_B) if self.n_records is None else self.n_records


@dataclass(frozen=True, slots=True)
class PerUnitGradients:
    """One gradient per unit for every trainable parameter. Private.

    Attributes:
        values: parameter name -> [U, *parameter shape], or what stands for it.
        losses_U: each unit's loss, in fp32.
        n_fillers: how many of the last units are public fillers, whose gradients are zero.
    """

    values: Mapping[str, Tensor | FactoredGradients]
    losses_U: Tensor
    n_fillers: int = 0

    def dense(self) -> dict[str, Tensor]:
        """Parameter name -> [U, *parameter shape], instantiated."""
        return {
            name: value if isinstance(value, Tensor) else value.dense()
            for name, value in self.values.items()
        }


@dataclass(frozen=True, slots=True)
class ClipCounts:
    """What the owner may look at in local mode. Private; never leaves the private folder."""

    n_units: int = 0
    n_clipped: int = 0
    n_non_finite: int = 0
    loss_sum: float = 0.0
    norm_sum: float = 0.0

    def __add__(self, other: ClipCounts) -> ClipCounts:
        return ClipCounts(
            self.n_units + other.n_units,
            self.n_clipped + other.n_clipped,
            self.n_non_finite + other.n_non_finite,
            self.loss_sum + other.loss_sum,
            self.norm_sum + other.norm_sum,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """What was noted about units while they were clipped, most of it still on the device. Private.

    To read a number is to wait for the device, so a step reads once.

    Attributes:
        counts: those that were read before.
        unread: of each microbatch, float64 [5, U]: for each unit 1 if it was clipped, 1 if it is
            not finite, its loss, its norm, and 1 if it is outstanding: then it is in no sum and in
            no count yet.
    """

    counts: ClipCounts = ClipCounts()
    unread: tuple[Tensor, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.counts + other.counts, self.unread + other.unread)

    def read(self) -> tuple[ClipCounts, list[list[int]]]:
        """The counts, and the outstanding units of each microbatch."""
        if not self.unread:
            return self.counts, []
        notes_5N = torch.cat(self.unread, 1).cpu().numpy()
        n_clipped, n_non_finite, loss_sum, norm_sum, n_outstanding = notes_5N.sum(1).tolist()
        counts = ClipCounts(
            notes_5N.shape[1] - int(n_outstanding),
            int(n_clipped),
            int(n_non_finite),
            loss_sum,
            norm_sum,
        )
        ends = np.cumsum([each_5U.shape[1] for each_5U in self.unread])
        parts = np.split(notes_5N[4], ends[:-1])
        return self.counts + counts, [np.flatnonzero(part).tolist() for part in parts]


@dataclass(frozen=True, slots=True)
class BoundedSum:
    """A sum over units to which no unit adds more than `l2_sensitivity`. Still private.

    Attributes:
        values: parameter name -> [*parameter shape], float64, so that adding one unit to a sum of
            thousands changes it by that unit's share and not by rounding.
        l2_sensitivity: bound on the l2 norm of the change when one unit is added or removed.
        tally: private statistics of the clipping; dropped when noise is added.
    """

    values: Mapping[str, Tensor]
    l2_sensitivity: float
    tally: Tally = Tally()

    @property
    def counts(self) -> ClipCounts:
        """The statistics in numbers; waits for the device, unless they were read before."""
        return self.tally.read()[0]


@dataclass(frozen=True, slots=True)
class PrivateGradient:
    """The released gradient: clipped, summed, noised, divided by a public number.

    Everything computed from it is post-processing.

    Attributes:
        values: parameter name -> [*parameter shape], float32.
        noise_std: standard deviation of the noise in `values`.
    """

    values: Mapping[str, Tensor]
    noise_std: float


@dataclass(frozen=True, slots=True)
class PrivateStatistics:
    """K released figures about units: clipped, summed, noised, divided by a public number.

    Attributes:
        mean_K: the noised sum over units, divided by the public number of units.
        noise_std: standard deviation of the noise in each of them.
    """

    mean_K: tuple[float, ...]
    noise_std: float

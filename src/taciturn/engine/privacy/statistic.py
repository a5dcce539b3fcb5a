"""Figures about private units, released once: bounded per unit, summed, noised.

How well a model predicts held-out patients, or how their notes are spread over clusters, is as
private as a gradient is, and goes the same way: clip, sum, Gaussian noise, a public divisor.

Shapes: U units, K figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import dp_accounting
from torch import Tensor

from taciturn.engine.privacy import clipping, noise
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import PrivateStatistics
from taciturn.errors import GuaranteeError


@dataclass(frozen=True, slots=True)
class GaussianStatistic:
    """The Gaussian mechanism on a sum of per-unit figures (Dwork and Roth 2014, appendix A).

    Guarantee: one call of `release`, on one row per unit, satisfies what `dp_event` says under
    addition or removal of one unit, whatever the figures are: rows are scaled to `l2_clip_norm`,
    and the number of rows enters nothing. The divisor is `n_units`, which is public.

    Attributes:
        n_units: number of units; public.
        l2_clip_norm: bound on the l2 norm of one unit's row.
        noise_multiplier: noise standard deviation over l2_clip_norm.
    """

    n_units: int
    l2_clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        positive = self.l2_clip_norm > 0 and self.noise_multiplier > 0 and self.n_units >= 1
        if not (positive and math.isfinite(self.l2_clip_norm * self.noise_multiplier)):
            raise GuaranteeError(
                f"n_units={self.n_units}, l2_clip_norm={self.l2_clip_norm} and noise_multiplier="
                f"{self.noise_multiplier} must all be positive and finite"
            )

    @property
    def dp_event(self) -> dp_accounting.DpEvent:
        """What one release costs."""
        return dp_accounting.GaussianDpEvent(self.noise_multiplier)

    def release(self, values_UK: Tensor, stream: SecureStream) -> PrivateStatistics:
        """The mean row, with noise. `values_UK` is private and needs one row per unit."""
        total = clipping.clip_and_sum_statistics(values_UK, self.l2_clip_norm)
        private = noise.add_noise(total, self.noise_multiplier, self.n_units, stream)
        mean_K = private.values[clipping.STATISTICS].tolist()
        return PrivateStatistics(tuple(mean_K), private.noise_std)

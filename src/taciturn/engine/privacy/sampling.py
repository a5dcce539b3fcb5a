"""Exact Poisson sampling over privacy units: one draw per logical step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taciturn.engine.privacy.rng import SecureStream


@dataclass(frozen=True, slots=True)
class PoissonSampler:
    """Each unit joins each draw independently with `sampling_probability`.

    Guarantee: inclusion is independent across units and across draws, which is what
    `PoissonSampledDpEvent` assumes (Abadi et al. 2016, section 3.1; Mironov et al. 2019). A draw
    may be empty, and its size is private.
    """

    sampling_probability: float

    def __post_init__(self) -> None:
        if not 0 < self.sampling_probability <= 1:
            raise ValueError(f"sampling_probability={self.sampling_probability} must lie in (0, 1]")

    def draw(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        """The indices of one step's units, ascending. Private.

        Args:
            n_present: how many units there are. Private: another number is public by policy.
        """
        return np.flatnonzero(stream.bernoulli(n_present, self.sampling_probability))

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

    n_units: int
    sampling_probability: float

    def __post_init__(self) -> None:
        if self.n_units < 1:
            raise ValueError(f"n_units={self.n_units} must be at least 1")
        if not 0 < self.sampling_probability <= 1:
            raise ValueError(f"sampling_probability={self.sampling_probability} must lie in (0, 1]")

    def draw(self, stream: SecureStream) -> NDArray[np.int64]:
        """The indices of one step's units, ascending. Private."""
        return np.flatnonzero(stream.bernoulli(self.n_units, self.sampling_probability))

"""DP-SGD as one object: what is sampled, clipped, noised and accounted comes from one config.

There is no second place that could disagree with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import dp_accounting
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from taciturn.accounting.events import dpsgd_event
from taciturn.engine.privacy import clipping, noise
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.sampling import PoissonSampler
from taciturn.engine.privacy.types import BoundedSum, PerUnitGradients, PrivateGradient
from taciturn.errors import GuaranteeError


@dataclass(frozen=True, slots=True)
class DpSgdMechanism:
    """Poisson-subsampled Gaussian mechanism on per-unit gradients (Abadi et al. 2016, algorithm 1).

    Guarantee: running `sample`, `clip_and_sum` and `add_noise` once per step, `steps` times, on
    whole units satisfies what `dp_event` says, under addition or removal of one unit.

    Attributes:
        n_units: number of units; public by policy. How many there really are is private: `sample`
            is told, and nothing else depends on it.
        expected_batch_size: expected units per step, if there are `n_units`; public. The noised sum
            is divided by it.
        steps: logical steps planned.
        noise_multiplier: noise standard deviation over l2_clip_norm.
        l2_clip_norm: bound on one unit's contribution.
        parameter_names: the trainable parameters; freezing or unfreezing one mid-run is refused.
    """

    n_units: int
    expected_batch_size: int
    steps: int
    noise_multiplier: float
    l2_clip_norm: float
    parameter_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.expected_batch_size <= self.n_units:
            raise GuaranteeError(
                f"expected_batch_size={self.expected_batch_size} must lie in "
                f"[1, n_units={self.n_units}]"
            )
        if 2 * self.expected_batch_size > clipping.MOST_UNITS:
            raise GuaranteeError(
                f"expected_batch_size={self.expected_batch_size} is above "
                f"{clipping.MOST_UNITS // 2}, up to which the rounding of a sum is bounded; lower "
                "batch_size and take more steps"
            )
        if not (self.steps >= 1 and self.noise_multiplier > 0 and self.l2_clip_norm > 0):
            raise GuaranteeError(
                f"steps={self.steps}, noise_multiplier={self.noise_multiplier} and "
                f"l2_clip_norm={self.l2_clip_norm} must all be positive"
            )
        if not self.parameter_names:
            raise GuaranteeError("no trainable parameter: there is nothing to fit")

    @property
    def sampling_probability(self) -> float:
        """Chance of each unit to join a step."""
        return self.expected_batch_size / self.n_units

    @property
    def dp_event(self) -> dp_accounting.DpEvent:
        """What running all planned steps costs."""
        return dpsgd_event(
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps,
        )

    def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        """One logical step's units. Private.

        Guarantee: each of the `n_present` units joins with `sampling_probability`, which follows
        from public numbers alone. So adding a unit changes nothing about any other, whether or not
        there are as many units as were declared.

        Args:
            n_present: how many units there really are; may be none. Private.
        """
        return PoissonSampler(self.sampling_probability).draw(stream, n_present)

    def clip_and_sum(
        self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
    ) -> BoundedSum:
        """The clipped sum over one step's microbatches, which share no unit; zero if there is none.

        Args:
            parameters: the trainable parameters, for the shape of an empty draw.
            microbatches: gradients of disjoint groups of whole units.
        """
        self._check_names(parameters)
        total: BoundedSum | None = None
        for gradients in microbatches:
            self._check_names(gradients.values)
            total = clipping.clip_and_sum(gradients, self.l2_clip_norm, total)
            del gradients  # its memory is free before the next microbatch is made
        return clipping.empty_sum(parameters, self.l2_clip_norm) if total is None else total

    def settle(
        self,
        total: BoundedSum,
        again: Callable[[list[list[int]]], Iterable[PerUnitGradients]],
    ) -> BoundedSum:
        """The sum with the units that are not in it yet; see `clipping.settle`."""
        self._check_names(total.values)
        return clipping.settle(total, again)

    def sum_over_ranks(self, part: BoundedSum, ranks: Ranks) -> BoundedSum:
        """This rank's own rows of the clipped sum over all ranks' units; all of it if alone."""
        self._check_names(part.values)
        return clipping.sum_over_ranks(part, ranks)

    def on_every_rank(
        self, own: PrivateGradient, parameters: Mapping[str, Tensor], ranks: Ranks
    ) -> PrivateGradient:
        """The gradient with the rows of all ranks, each noised by the rank that owns it."""
        self._check_names(parameters)
        return noise.on_every_rank(own, parameters, ranks)

    def add_noise(self, total: BoundedSum, stream: SecureStream) -> PrivateGradient:
        """The released gradient estimate: (sum + noise) / expected_batch_size."""
        if total.l2_sensitivity != self.l2_clip_norm:
            raise GuaranteeError(
                f"sum has sensitivity {total.l2_sensitivity}, the mechanism clips to "
                f"{self.l2_clip_norm}"
            )
        self._check_names(total.values)
        return noise.add_noise(total, self.noise_multiplier, self.expected_batch_size, stream)

    def _check_names(self, values: Mapping[str, object]) -> None:
        if tuple(values) != self.parameter_names:
            changed = sorted(set(values) ^ set(self.parameter_names))[:3]
            raise GuaranteeError(
                f"trainable parameters changed during the run ({', '.join(changed) or 'order'}); "
                "freeze or unfreeze before fit, not during it"
            )

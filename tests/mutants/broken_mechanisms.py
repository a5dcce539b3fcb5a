"""Mechanisms as other libraries got them wrong: sampling, clipping and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taciturn.engine.privacy import clipping, noise
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import (
    BoundedSum,
    ClipCounts,
    PerUnitGradients,
    PrivateGradient,
    Tally,
)


class HalfNoise(DpSgdMechanism):
    """Accounts for sigma, adds half of it."""

    def add_noise(self, total: BoundedSum, stream: SecureStream) -> PrivateGradient:
        return noise.add_noise(total, self.noise_multiplier / 2, self.expected_batch_size, stream)


class NoNoise(DpSgdMechanism):
    """Forgets the noise."""

    def add_noise(self, total: BoundedSum, stream: SecureStream) -> PrivateGradient:
        values = {k: (v / self.expected_batch_size).float() for k, v in total.values.items()}
        return PrivateGradient(values, 0.0)


class NoiseOfAnEighth(DpSgdMechanism):
    """Draws the noise of the first entries and repeats it."""

    def add_noise(self, total: BoundedSum, stream: SecureStream) -> PrivateGradient:
        std = self.noise_multiplier * total.l2_sensitivity
        values = {}
        for name, value in total.values.items():
            drawn = stream.normal((max(1, value.numel() // 8),)) * std
            repeated = drawn.repeat(9)[: value.numel()].view(value.shape)
            values[name] = ((value + repeated) / self.expected_batch_size).float()
        return PrivateGradient(values, std / self.expected_batch_size)


class NoClip(DpSgdMechanism):
    """States a sensitivity and does not make it true."""

    def clip_and_sum(
        self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
    ) -> BoundedSum:
        total = clipping.empty_sum(parameters, self.l2_clip_norm)
        for gradients in microbatches:
            sums = {name: value.double().sum(0) for name, value in gradients.dense().items()}
            part = BoundedSum(
                sums, self.l2_clip_norm, Tally(ClipCounts(n_units=len(gradients.losses_U)))
            )
            total = clipping.merge_disjoint(total, part)
        return total


class ClipPerMicrobatch(DpSgdMechanism):
    """Clips the sum of a microbatch as if it were one unit's gradient."""

    def clip_and_sum(
        self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
    ) -> BoundedSum:
        merged = (
            PerUnitGradients(
                {name: value.sum(0, keepdim=True) for name, value in each.dense().items()},
                each.losses_U.sum(0, keepdim=True),
            )
            for each in microbatches
        )
        return super().clip_and_sum(parameters, merged)


class ClipPerParameter(DpSgdMechanism):
    """Clips each parameter to the norm by itself, and states the norm for all together."""

    def clip_and_sum(
        self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
    ) -> BoundedSum:
        total = clipping.empty_sum(parameters, self.l2_clip_norm)
        for each in microbatches:
            sums: dict[str, Tensor] = {}
            for name, value in each.values.items():
                alone = PerUnitGradients({name: value}, each.losses_U)
                sums |= clipping.clip_and_sum(alone, self.l2_clip_norm).values
            part = BoundedSum(sums, self.l2_clip_norm)
            total = clipping.merge_disjoint(total, part)
        return total


class NoMargin(DpSgdMechanism):
    """Clips to the norm itself: what sums round comes on top."""

    def clip_and_sum(
        self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
    ) -> BoundedSum:
        total = clipping.empty_sum(parameters, self.l2_clip_norm)
        for each in microbatches:
            values = clipping.clip_and_sum(each, self.l2_clip_norm * (1 + clipping.ROUNDING)).values
            part = BoundedSum(dict(values), self.l2_clip_norm)
            total = clipping.merge_disjoint(total, part)
        return total


class MarginByForm(DpSgdMechanism):
    """Leaves room for rounding where gradients are kept as factors, and only there."""

    def clip_and_sum(
        self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
    ) -> BoundedSum:
        total = clipping.empty_sum(parameters, self.l2_clip_norm)
        for each in microbatches:
            factored = any(not isinstance(value, Tensor) for value in each.values.values())
            norm = self.l2_clip_norm * (1 if factored else 1 + clipping.ROUNDING)
            values = clipping.clip_and_sum(each, norm).values
            part = BoundedSum(dict(values), self.l2_clip_norm)
            total = clipping.merge_disjoint(total, part)
        return total


class NotFiniteIncluded(DpSgdMechanism):
    """Scales by C / norm without looking at what the norm is."""

    def clip_and_sum(
        self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
    ) -> BoundedSum:
        total = clipping.empty_sum(parameters, self.l2_clip_norm)
        for each in microbatches:
            scale_U = (self.l2_clip_norm / clipping.unit_norms(each)).clamp(max=1.0)
            sums = {
                name: torch.einsum("u,u...->...", scale_U, value.double())
                for name, value in each.dense().items()
            }
            part = BoundedSum(sums, self.l2_clip_norm)
            total = clipping.merge_disjoint(total, part)
        return total


Again = Callable[[list[list[int]]], Iterable[PerUnitGradients]]


class OutstandingForgotten(DpSgdMechanism):
    """Reads which units are not in the sum, and leaves it at that."""

    def settle(self, total: BoundedSum, again: Again) -> BoundedSum:
        return total


class OutstandingTwice(DpSgdMechanism):
    """Adds them for each of two readings of the same list."""

    def settle(self, total: BoundedSum, again: Again) -> BoundedSum:
        _, units = total.tally.read()
        total = super().settle(total, again)
        for gradients in again(units):
            part = clipping.clip_and_sum(gradients, self.l2_clip_norm)
            total = clipping.merge_disjoint(total, part)
        return total


class OutstandingUnclipped(DpSgdMechanism):
    """Adds their instantiated gradients without a look at the norms."""

    def settle(self, total: BoundedSum, again: Again) -> BoundedSum:
        _, units = total.tally.read()
        for gradients in again(units):
            sums = {name: value.double().sum(0) for name, value in gradients.dense().items()}
            total = clipping.merge_disjoint(total, BoundedSum(sums, self.l2_clip_norm))
        return total


class OutstandingMistaken(DpSgdMechanism):
    """Computes the unit beside each of them again."""

    def settle(self, total: BoundedSum, again: Again) -> BoundedSum:
        return super().settle(
            total, lambda units: again([[max(0, each - 1) for each in some] for some in units])
        )


class Shuffle(DpSgdMechanism):
    """Takes a random batch of exactly the expected size, and accounts for Poisson."""

    def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        order = np.argsort(stream.integers(self.n_units))
        return np.sort(order[: self.expected_batch_size])


@dataclass(frozen=True)
class InOrder(DpSgdMechanism):
    """Goes through the data from the first unit to the last, and again; accounts for Poisson."""

    drawn: list[int] = field(default_factory=list)

    def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        start = sum(self.drawn)
        self.drawn.append(self.expected_batch_size)
        return np.sort(np.arange(start, start + self.expected_batch_size) % self.n_units)


class ByRowOrder(DpSgdMechanism):
    """Takes neighbours together: each unit often enough, but not independently."""

    def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        pairs = stream.bernoulli((self.n_units + 1) // 2, self.sampling_probability)
        return np.flatnonzero(np.repeat(pairs, 2)[: self.n_units])


class ShareOfThoseThere(DpSgdMechanism):
    """Fills the batch from the units that are there: the fewer there are, the oftener each."""

    def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        probability = min(1.0, self.expected_batch_size / max(1, n_present))
        return np.flatnonzero(stream.bernoulli(n_present, probability))


class DeclaredOnly(DpSgdMechanism):
    """Draws among as many units as were declared, whoever is there."""

    def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        return np.flatnonzero(stream.bernoulli(self.n_units, self.sampling_probability))


class OftenerThanSaid(DpSgdMechanism):
    """Takes each unit one and a half times as often as is accounted for."""

    def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        return np.flatnonzero(stream.bernoulli(self.n_units, 1.5 * self.sampling_probability))

"""The release of figures, and ways to get it wrong: each is killed by the check that is for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from taciturn.engine.privacy import clipping, noise
from taciturn.engine.privacy.clipping import STATISTICS
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.statistic import GaussianStatistic
from taciturn.engine.privacy.types import BoundedSum, PrivateStatistics

pytestmark = pytest.mark.statistical

Kind = type[GaussianStatistic]
SIGMA, CLIP, N_UNITS = 1.5, 2.0, 8


def made(kind: Kind) -> GaussianStatistic:
    return kind(n_units=N_UNITS, l2_clip_norm=CLIP, noise_multiplier=SIGMA)


def stream(number: int) -> SecureStream:
    return SecureStream(number.to_bytes(32, "big"))


def released(
    total: BoundedSum, sigma: float, divisor: int, source: SecureStream
) -> PrivateStatistics:
    private = noise.add_noise(total, sigma, divisor, source)
    return PrivateStatistics(tuple(private.values[STATISTICS].tolist()), private.noise_std)


class HalfNoise(GaussianStatistic):
    def release(self, values_UK: Tensor, stream: SecureStream) -> PrivateStatistics:
        total = clipping.clip_and_sum_statistics(values_UK, self.l2_clip_norm)
        return released(total, self.noise_multiplier / 2, self.n_units, stream)


class NoClip(GaussianStatistic):
    def release(self, values_UK: Tensor, stream: SecureStream) -> PrivateStatistics:
        total = BoundedSum({STATISTICS: values_UK.double().sum(0)}, self.l2_clip_norm)
        return released(total, self.noise_multiplier, self.n_units, stream)


class ClipPerFigure(GaussianStatistic):
    """Bounds each figure by the norm, and states the norm for all together."""

    def release(self, values_UK: Tensor, stream: SecureStream) -> PrivateStatistics:
        clipped = values_UK.nan_to_num().double().clamp(-self.l2_clip_norm, self.l2_clip_norm)
        total = BoundedSum({STATISTICS: clipped.sum(0)}, self.l2_clip_norm)
        return released(total, self.noise_multiplier, self.n_units, stream)


class RealisedCount(GaussianStatistic):
    """Divides by the number of rows, which changes with the neighbour."""

    def release(self, values_UK: Tensor, stream: SecureStream) -> PrivateStatistics:
        total = clipping.clip_and_sum_statistics(values_UK, self.l2_clip_norm)
        return released(total, self.noise_multiplier, max(1, len(values_UK)), stream)


class SeedFortyTwo(GaussianStatistic):
    def release(self, values_UK: Tensor, stream: SecureStream) -> PrivateStatistics:
        total = clipping.clip_and_sum_statistics(values_UK, self.l2_clip_norm)
        return released(total, self.noise_multiplier, self.n_units, SecureStream(bytes(32)))


class OneNoiseForAll(GaussianStatistic):
    def release(self, values_UK: Tensor, stream: SecureStream) -> PrivateStatistics:
        total = clipping.clip_and_sum_statistics(values_UK, self.l2_clip_norm)
        std = self.noise_multiplier * self.l2_clip_norm
        noised = (total.values[STATISTICS] + std * stream.normal((1,))) / self.n_units
        return PrivateStatistics(tuple(noised.tolist()), std / self.n_units)


class NotFiniteIncluded(GaussianStatistic):
    def release(self, values_UK: Tensor, stream: SecureStream) -> PrivateStatistics:
        norms_U = values_UK.double().norm(dim=1)
        scale_U = (self.l2_clip_norm / norms_U).clamp(max=1.0)
        total = BoundedSum({STATISTICS: scale_U @ values_UK.double()}, self.l2_clip_norm)
        return released(total, self.noise_multiplier, self.n_units, stream)


def sensitivity(kind: Kind) -> None:
    """With the noise held fixed, no unit moves the release by more than clip / n_units."""
    rows = torch.tensor([[9.0, 9.0, 9.0], [0.1, 0.0, -0.2], [-5.0, 0.0, 0.0]])
    mechanism = made(kind)
    base = mechanism.release(rows, stream(1)).mean_K
    for index in range(len(rows)):
        kept = torch.cat([rows[:index], rows[index + 1 :]])
        other = mechanism.release(kept, stream(1)).mean_K
        assert np.linalg.norm(np.subtract(base, other)) <= CLIP / N_UNITS * (1 + 1e-4)


def one_bad_row(kind: Kind) -> None:
    rows = torch.tensor([[math.nan, 1.0], [math.inf, 0.0], [1.0, 0.0]])
    assert np.isfinite(made(kind).release(rows, stream(2)).mean_K).all()


def scale_of_the_noise(kind: Kind) -> None:
    figures = made(kind).release(torch.zeros(N_UNITS, 20_000), stream(3)).mean_K
    ratio = np.mean(np.square(figures)) / (SIGMA * CLIP / N_UNITS) ** 2
    assert abs(ratio - 1) < 5.5 * math.sqrt(2 / 20_000)


def independent_noise(kind: Kind) -> None:
    first, second = (made(kind).release(torch.zeros(2, 500), stream(n)).mean_K for n in (4, 5))
    assert len(set(first)) == 500
    assert not set(first) & set(second)


CHECKS = (sensitivity, one_bad_row, scale_of_the_noise, independent_noise)
MUTANTS: dict[Kind, Callable[[Kind], None]] = {
    HalfNoise: scale_of_the_noise,
    NoClip: sensitivity,
    ClipPerFigure: sensitivity,
    RealisedCount: sensitivity,
    SeedFortyTwo: independent_noise,
    OneNoiseForAll: independent_noise,
    NotFiniteIncluded: one_bad_row,
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_real_one_passes(check: Callable[[Kind], None]) -> None:
    check(GaussianStatistic)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_killed(mutant: Kind) -> None:
    with pytest.raises(AssertionError):
        MUTANTS[mutant](mutant)

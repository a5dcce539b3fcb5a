"""The noise is normal with the stated deviation; a test of it notices 3% either way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mutants.harness import CHANCE, key
from mutants.noise_checks import two_sided
from taciturn.engine.privacy.clipping import empty_sum
from taciturn.engine.privacy.noise import add_noise, grid_step
from taciturn.engine.privacy.rng import SecureStream

pytestmark = pytest.mark.statistical
N = 40_000


def noise(sigma: float, clip: float, divisor: float, number: int) -> torch.Tensor:
    zeros = {"a": torch.zeros(N // 2), "b": torch.zeros(100, N // 200)}
    released = add_noise(empty_sum(zeros, clip), sigma, divisor, SecureStream(key(number)))
    return torch.cat([value.double().flatten() for value in released.values.values()])


@pytest.mark.parametrize(("sigma", "clip", "divisor"), [(1, 1, 1), (0.3, 20, 64), (8, 1e-4, 7)])
def test_accepts_the_right_scale_and_rejects_others(
    sigma: float, clip: float, divisor: float
) -> None:
    std = sigma * clip / divisor
    values = noise(sigma, clip, divisor, 1)
    two_sided(values, std)
    for wrong in (0.5, 0.9, 0.97, 1.03, 1.1, 2.0):
        with pytest.raises(AssertionError):
            two_sided(values * wrong, std)


def test_rejects_another_law_of_the_same_scale() -> None:
    uniform = (torch.rand(N, generator=torch.Generator().manual_seed(0)).double() - 0.5) * 12**0.5
    two_sided(torch.randn(N, generator=torch.Generator().manual_seed(0)).double(), 1.0)
    with pytest.raises(AssertionError):
        two_sided(uniform, 1.0)


class DeviceStream(SecureStream):
    """Makes its noise as for another device, on this one."""

    def _own_bits(self, half: int, device: torch.device) -> torch.Tensor:
        return self._device_bits(half, device)


STREAMS = pytest.mark.parametrize("kind", [SecureStream, DeviceStream])


@STREAMS
def test_stream_is_standard_normal_in_every_moment_that_matters(kind: type[SecureStream]) -> None:
    values = kind(key(2)).normal((400_000,)).numpy()
    assert stats.kstest(values, "norm").pvalue > CHANCE
    for power, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10_170)):
        deviations = (np.mean(values**power) - expected) / math.sqrt(spread / len(values))
        assert abs(deviations) < 5.5, power


@STREAMS
def test_tails(kind: type[SecureStream]) -> None:
    values = np.abs(kind(key(3)).normal((1_000_000,)).numpy())
    for far in (2, 3, 4):
        seen, expected = (values > far).sum(), 2 * stats.norm.sf(far) * len(values)
        assert stats.poisson.cdf(seen, expected) > CHANCE
        assert stats.poisson.sf(seen - 1, expected) > CHANCE


@STREAMS
@pytest.mark.parametrize("lag", [1, 2, 50_000])
def test_values_are_independent(lag: int, kind: type[SecureStream]) -> None:
    """Lag 50,000 pairs the two values that one Box-Muller pair gives."""
    values = kind(key(4)).normal((100_000,)).numpy()
    for transform in (lambda x: x, np.square, np.sign, np.abs):
        a, b = transform(values[:-lag]), transform(values[lag:])
        correlation = np.corrcoef(a, b)[0, 1]
        assert abs(correlation) * math.sqrt(len(a)) < 5.5


def test_integers_are_uniform_in_every_byte() -> None:
    drawn = SecureStream(key(5)).integers(100_000).view(np.uint8).reshape(-1, 8)
    for byte in drawn.T:
        assert stats.chisquare(np.bincount(byte, minlength=256)).pvalue > CHANCE


def test_grid_rounding_changes_no_law() -> None:
    std = 1.0
    values = noise(std, 1, 1, 6)
    cells = (values / grid_step(std)).round()
    assert len(cells.unique()) > 0.95 * N, "the grid is fine enough to be felt nowhere"


def test_two_streams_have_nothing_in_common() -> None:
    first, second = (SecureStream.fresh().normal((50_000,)).numpy() for _ in range(2))
    assert len(np.intersect1d(first, second)) == 0
    assert abs(np.corrcoef(first, second)[0, 1]) * math.sqrt(50_000) < 6

"""The Gaussian mechanism: the right scale, on a grid, divided by a public number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taciturn.engine.privacy import noise
from taciturn.engine.privacy.clipping import clip_and_sum, empty_sum
from taciturn.engine.privacy.noise import add_noise, grid_step
from taciturn.engine.privacy.rng import NORMAL_CHUNK, SecureStream
from taciturn.engine.privacy.types import BoundedSum, PerUnitGradients

KEY = bytes(range(32))


def some_sum(clip: float = 2.0) -> BoundedSum:
    generator = torch.Generator().manual_seed(0)
    values = {
        "w": torch.randn(5, 30, 4, generator=generator),
        "b": torch.randn(5, 7, generator=generator),
    }
    return clip_and_sum(PerUnitGradients(values, torch.zeros(5)), clip)


def test_scale_is_stated() -> None:
    assert add_noise(some_sum(), 1.5, 10, SecureStream(KEY)).noise_std == 1.5 * 2.0 / 10


def test_is_sum_plus_noise_over_divisor() -> None:
    """Small parameters are noised together, in their order."""
    total = some_sum()
    released = add_noise(total, 1.5, 10, SecureStream(KEY))
    drawn = SecureStream(KEY).normal((120 + 7,)).split([120, 7])
    for (name, value), own in zip(total.values.items(), drawn, strict=True):
        expected = (value + 3.0 * own.view(value.shape)) / 10
        torch.testing.assert_close(
            released.values[name].double(), expected, rtol=1e-6, atol=grid_step(3.0)
        )
        assert released.values[name].dtype == torch.float32


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), chunk=st.integers(1, 8))
def test_every_value_has_noise_of_its_own_whatever_is_noised_together(
    sizes: list[int], chunk: int
) -> None:
    zeros = {f"p{index}": torch.zeros(size) for index, size in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "NORMAL_CHUNK", 2 * chunk)
        released = add_noise(empty_sum(zeros, 1.0), 1.0, 1, SecureStream(KEY)).values
    flat = torch.cat([released[name] for name in zeros])
    assert [len(value) for value in released.values()] == sizes
    assert len(flat.unique()) == sum(sizes)
    assert bool((flat != 0).all())


def test_no_bit_of_the_scale_is_lost_on_the_grid() -> None:
    """As if written down: (sum + std * noise), rounded to the grid, over the divisor."""
    total, std = some_sum(), 1.3 * 2.0
    released = add_noise(total, 1.3, 7, SecureStream(KEY))
    step = grid_step(std)
    own = SecureStream(KEY).normal((127,))[:120].view(30, 4)
    plain = ((own * std + total.values["w"]) / step).round() * step / 7
    assert torch.equal(released.values["w"], plain.float())


def test_each_parameter_has_noise_of_its_own() -> None:
    zeros = {"a": torch.zeros(50), "b": torch.zeros(50)}
    released = add_noise(empty_sum(zeros, 1.0), 1.0, 1, SecureStream(KEY))
    assert not torch.equal(released.values["a"], released.values["b"])


def large_zero(count: int) -> BoundedSum:
    return empty_sum({"w": torch.zeros(count // 100, 100), "b": torch.zeros(77)}, 1.0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_noise_does_not_depend_on_threads(threads: int) -> None:
    total, before = large_zero(20 * NORMAL_CHUNK), torch.get_num_threads()
    expected = add_noise(total, 1.0, 1, SecureStream(KEY)).values
    try:
        torch.set_num_threads(threads)
        again = add_noise(total, 1.0, 1, SecureStream(KEY)).values
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_no_chunk_repeats_another() -> None:
    """Of 64-bit noise on a grid, two parts alike would have had one stream."""
    released = add_noise(large_zero(20 * NORMAL_CHUNK), 1.0, 1, SecureStream(KEY)).values["w"]
    flat = released.flatten().double()
    parts = flat[: len(flat) // NORMAL_CHUNK * NORMAL_CHUNK].view(-1, NORMAL_CHUNK)
    correlation = parts @ parts.T / NORMAL_CHUNK
    off = correlation - torch.diag(correlation.diagonal())
    assert float(off.abs().max()) < 6 / math.sqrt(NORMAL_CHUNK)
    assert float((correlation.diagonal() - 1).abs().max()) < 8 / math.sqrt(NORMAL_CHUNK)


def test_next_large_sum_has_other_noise() -> None:
    total, stream = large_zero(20 * NORMAL_CHUNK), SecureStream(KEY)
    first, second = (add_noise(total, 1.0, 1, stream).values["w"] for _ in range(2))
    assert not bool((first == second).view(-1)[:1000].all())
    assert abs(float(torch.corrcoef(torch.stack([first.view(-1), second.view(-1)]))[0, 1])) < 0.01


def test_a_stream_that_fails_is_not_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: SecureStream, *_: object) -> None:
        raise OSError("no entropy")

    monkeypatch.setattr(SecureStream, "normal", fail)
    with pytest.raises(OSError, match="no entropy"):
        add_noise(large_zero(20 * NORMAL_CHUNK), 1.0, 1, SecureStream(KEY))


def test_sum_is_not_changed() -> None:
    total = some_sum()
    before = {name: value.clone() for name, value in total.values.items()}
    add_noise(total, 1.0, 3, SecureStream(KEY))
    assert all(torch.equal(value, before[name]) for name, value in total.values.items())


@given(st.floats(1e-12, 1e12))
def test_grid_is_a_power_of_two_far_below_the_noise(std: float) -> None:
    step = grid_step(std)
    assert math.frexp(step)[0] == 0.5
    assert 2**-21 < step / std <= 2**-20


@given(multiplier=st.floats(0.01, 100), clip=st.floats(0.001, 100))
def test_released_sums_are_on_the_grid(multiplier: float, clip: float) -> None:
    """Low-order bits of a floating-point sum give away what was added (Mironov 2012)."""
    released = add_noise(some_sum(clip), multiplier, 1, SecureStream(KEY))
    step = grid_step(multiplier * clip)
    for value in released.values.values():
        # A multiple of the grid with more than 24 bits is rounded once more, to fp32.
        cells = value.double() / step
        nearest = cells.round()
        fp32_gap = (cells.abs() * 2**-24).clamp(min=0)
        assert bool(((cells - nearest).abs() <= fp32_gap).all())


def test_grid_hides_what_is_below_it() -> None:
    """Two sums that differ by far less than a cell are released as the same number."""
    zero = {"w": torch.zeros(1000)}
    total = empty_sum(zero, 1.0)
    moved = BoundedSum({"w": total.values["w"] + 2**-40}, 1.0, total.counts)
    first = add_noise(total, 1.0, 1, SecureStream(KEY)).values["w"]
    second = add_noise(moved, 1.0, 1, SecureStream(KEY)).values["w"]
    assert int((first != second).sum()) <= 1


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_multiplier_must_be_positive_and_finite(multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        add_noise(some_sum(), multiplier, 1, SecureStream(KEY))


@pytest.mark.parametrize("divisor", [0, -2, float("nan")])
def test_divisor_must_be_positive(divisor: float) -> None:
    with pytest.raises(ValueError, match="divisor"):
        add_noise(some_sum(), 1.0, divisor, SecureStream(KEY))

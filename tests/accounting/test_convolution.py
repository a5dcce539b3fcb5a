"""Tilted, windowed, cyclic composition: equal to brute force, and never below it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.accounting.convolution import composed_epsilon
from taciturn.accounting.gaussian import Floats, gaussian_epsilon
from taciturn.accounting.privacy_loss import (
    LossGrid,
    SampledGaussian,
    connect_the_dots,
    quadrature,
)
from taciturn.accounting.renyi import renyi_epsilon, saddle_order

Parts = list[tuple[LossGrid, int]]


def brute_epsilon(parts: Parts, delta: float) -> float:
    """Plain convolution of all masses, then bisection of the definition of delta(eps)."""
    masses: Floats = np.ones(1)
    first = 0
    for grid, count in parts:
        for _ in range(count):
            masses = np.convolve(masses, grid.masses_L)
            first += grid.first
    losses = (first + np.arange(len(masses))) * parts[0][0].interval
    low, high = 0.0, float(losses[-1])
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(-np.expm1(middle - losses), 0) @ masses > delta:
            low = middle
        else:
            high = middle
    return high


@st.composite
def small_parts(draw: st.DrawFn) -> Parts:
    """One or two random grids, each taken a few times."""
    parts = []
    for _ in range(draw(st.integers(1, 2))):
        weights = draw(st.lists(st.floats(1e-6, 1), min_size=2, max_size=8))
        masses = np.array(weights) / sum(weights)
        first = draw(st.integers(-6, 2))
        parts.append((LossGrid(0.05, first, masses, 0.0), draw(st.integers(1, 5))))
    return parts


@given(
    small_parts(),
    st.floats(min_value=-3, max_value=4).map(math.exp),
    st.floats(min_value=-6, max_value=-1).map(lambda exponent: 10**exponent),
)
def test_any_order_is_an_upper_bound(parts: Parts, order: float, delta: float) -> None:
    # 1e-9 and not 0: brute force rounds as well.
    assert composed_epsilon(parts, order, delta).epsilon >= brute_epsilon(parts, delta) - 1e-9


@given(small_parts(), st.floats(min_value=-6, max_value=-1).map(lambda exponent: 10**exponent))
def test_a_fitting_order_is_brute_force(parts: Parts, delta: float) -> None:
    found = min(
        composed_epsilon(parts, order, delta) for order in (0.3, 1.0, 3.0, 10.0, 30.0)
    ).epsilon
    assert found == pytest.approx(brute_epsilon(parts, delta), abs=1e-5)


def test_infinite_losses_count_in_full() -> None:
    masses = np.array([0.5, 0.5])
    grid = LossGrid(0.1, -1, masses * (1 - 1e-6), 1e-6)
    assert composed_epsilon([(grid, 5)], 1.0, 5.1e-6).epsilon < math.inf
    assert composed_epsilon([(grid, 5)], 1.0, 4.9e-6).epsilon == math.inf


@pytest.mark.parametrize(
    ("noise", "steps", "delta"),
    [
        (300.0, 100_000, 1e-12),
        (20.0, 100_000, 1e-12),
        (7.2, 100_000, 1e-12),
        (1e5, 100_000, 1e-12),
        (40.0, 100_000, 0.1),
        (3.0, 10, 1e-12),
        (1.0, 1, 1e-6),
        (30.0, 1_000_000, 1e-9),
    ],
)
def test_long_compositions_keep_the_digits_of_a_small_delta(
    noise: float, steps: int, delta: float
) -> None:
    """Without sampling the answer is known in closed form: here it goes the long way round."""
    exact = gaussian_epsilon(noise / math.sqrt(steps), delta)
    step = SampledGaussian(1.0, noise)
    samples = [(quadrature(step, "remove"), steps)]
    highest, _ = renyi_epsilon(samples, delta)
    order = saddle_order(samples, exact, highest)
    # Splitting over a cell costs at most (1 + order) interval^2 / 8 a step.
    interval = math.sqrt(16 * 1e-4 * exact / (steps * (1 + order)))
    found = composed_epsilon(
        [(connect_the_dots(step, interval, "remove"), steps)], order, delta
    ).epsilon
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 2e-4)


def test_slope_is_that_of_the_exact_divergence() -> None:
    noise = 4.0
    grid = connect_the_dots(SampledGaussian(1.0, noise), 1e-3, "remove")
    answer = composed_epsilon([(grid, 4)], 10.0, 1e-5)
    nearby = gaussian_epsilon(noise / 2, 1e-5 * math.exp(-1e-3))
    expected = 1e-3 / (nearby - gaussian_epsilon(noise / 2, 1e-5))
    assert answer.slope == pytest.approx(expected, rel=1e-2)

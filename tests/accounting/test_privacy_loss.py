"""One step's loss on a grid: the same as dp_accounting's, and never below the exact divergence."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from hypothesis import given
from hypothesis import strategies as st

from taciturn.accounting.gaussian import Floats
from taciturn.accounting.privacy_loss import (
    Direction,
    LossGrid,
    SampledGaussian,
    connect_the_dots,
    loss_range,
    quadrature,
)

DIRECTIONS: tuple[Direction, ...] = ("remove", "add")
STEPS = (
    (SampledGaussian(0.01, 1.0), 1e-3),
    (SampledGaussian(0.5, 0.1), 1e-1),
    (SampledGaussian(1e-6, 0.3), 1e-2),
    (SampledGaussian(0.001, 40.0), 1e-6),
    (SampledGaussian(0.9, 0.5), 1e-3),
    (SampledGaussian(1.0, 2.0), 1e-3),
)
sampled = st.builds(
    SampledGaussian,
    st.floats(min_value=-6, max_value=0).map(lambda exponent: 10**exponent),
    st.floats(min_value=-1.5, max_value=2).map(lambda exponent: 10**exponent),
)


def divergence(grid: LossGrid, epsilons: Floats) -> Floats:
    """delta(eps) of the grid, by its definition."""
    shares = -np.expm1(np.minimum(epsilons[:, None] - grid.losses()[None, :], 0.0))
    result: Floats = grid.infinity_mass + shares @ grid.masses_L
    return result


def exact(step: SampledGaussian, direction: Direction, epsilons: Floats) -> Floats:
    """delta(eps) of the step, by dp_accounting."""
    kind = AdjacencyType.REMOVE if direction == "remove" else AdjacencyType.ADD
    loss = GaussianPrivacyLoss(
        step.noise_multiplier, sampling_prob=step.sampling_probability, adjacency_type=kind
    )
    return np.asarray(loss.get_delta_for_epsilon(epsilons), dtype=np.float64)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("step", "interval"), STEPS)
def test_masses_are_those_of_dp_accounting(
    step: SampledGaussian, interval: float, direction: Direction
) -> None:
    reference = privacy_loss_distribution.from_gaussian_mechanism(
        step.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=step.sampling_probability,
    )
    pmf = reference._pmf_remove if direction == "remove" else reference._pmf_add
    theirs = pmf.to_dense_pmf()
    ours = connect_the_dots(step, interval, direction)
    # They cut at e^-50, we a little further out; beyond the shorter grid there is nothing to see.
    aligned = np.zeros(len(theirs._probs))
    shift = theirs._lower_loss - ours.first
    overlap = ours.masses_L[max(shift, 0) : shift + len(aligned)]
    aligned[max(-shift, 0) : max(-shift, 0) + len(overlap)] = overlap
    # Theirs are differences of probabilities, rounded to 1e-16 and divided by the interval.
    np.testing.assert_allclose(aligned, theirs._probs, atol=1e-15 + 1e-15 / interval, rtol=1e-7)
    assert ours.infinity_mass < 1e-20


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("step", "interval"), STEPS)
def test_both_sides_of_the_loss_keep_their_mass(
    step: SampledGaussian, interval: float, direction: Direction
) -> None:
    grid = connect_the_dots(step, interval, direction)
    assert grid.masses_L.sum() == pytest.approx(1, abs=1e-12)
    other_side = grid.masses_L @ np.exp(-grid.losses())
    # Where the unit joins and noise is small, part of the other side is out of reach.
    assert other_side <= 1 + 1e-12
    if direction == "remove" or step.noise_multiplier > 0.2:
        assert other_side == pytest.approx(1, abs=1e-12)


@given(sampled, st.floats(min_value=0.01, max_value=1), st.sampled_from(DIRECTIONS))
def test_a_grid_however_coarse_is_an_upper_bound(
    step: SampledGaussian, coarseness: float, direction: Direction
) -> None:
    low, high = loss_range(step, direction)
    grid = connect_the_dots(step, coarseness * max(high, -low), direction)
    epsilons = np.linspace(0, 0.9 * high, 25)
    margin = divergence(grid, epsilons) - exact(step, direction, epsilons)
    assert margin.min() >= -1e-13


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_finer_grid_is_a_lower_and_closer_bound(direction: Direction) -> None:
    step = SampledGaussian(0.05, 0.8)
    epsilons = np.linspace(0.0, 0.05, 21)
    truth = exact(step, direction, epsilons)
    intervals = (1e-2, 5e-3, 2.5e-3)
    errors = [
        divergence(connect_the_dots(step, interval, direction), epsilons) - truth
        for interval in intervals
    ]
    assert all((finer <= coarser + 1e-13).all() for coarser, finer in pairwise(errors))
    assert errors[2].max() < errors[0].max() / 10


@given(sampled)
def test_quadrature_has_the_exact_moments(step: SampledGaussian) -> None:
    sample = quadrature(step, "remove")
    assert np.exp(sample.log_masses_X).sum() == pytest.approx(1, abs=1e-10)
    # E[e^-loss] is the mass of the other side.
    assert np.exp(sample.log_masses_X - sample.losses_X).sum() == pytest.approx(1, abs=1e-8)


@given(sampled)
def test_losses_are_bounded_where_sampling_bounds_them(step: SampledGaussian) -> None:
    if step.sampling_probability < 1:
        hidden = math.log1p(-step.sampling_probability)
        assert loss_range(step, "remove")[0] >= hidden * (1 + 1e-9)
        assert loss_range(step, "add")[1] <= -hidden * (1 + 1e-9)

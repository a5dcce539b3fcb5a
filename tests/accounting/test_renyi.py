"""Rényi sums on the quadrature, against closed forms and dp_accounting's RDP accountant."""

from __future__ import annotations

import math

import mpmath
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st

from taciturn.accounting.events import dpsgd_event
from taciturn.accounting.privacy_loss import SampledGaussian, quadrature
from taciturn.accounting.renyi import (
    composed_deviation,
    cumulant,
    divergence,
    grid_interval,
    renyi_epsilon,
    saddle_order,
)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize(("q", "noise"), [(0.01, 1.5), (0.3, 1.3), (1e-5, 2.0), (0.9, 20.0)])
def test_removal_is_the_binomial_sum(q: float, noise: float, order: int) -> None:
    # Mironov, Talwar & Zhang 2019, section 3.3: E[(P/Q)^alpha] under Q, alpha = order + 1.
    alpha = order + 1
    total = sum(
        math.comb(alpha, j)
        * (1 - q) ** (alpha - j)
        * q**j
        * math.expm1(j * (j - 1) / (2 * noise**2))
        for j in range(alpha + 1)
    )
    sample = quadrature(SampledGaussian(q, noise), "remove")
    assert cumulant(sample, order) == pytest.approx(math.log1p(total), rel=1e-6)


@given(st.floats(min_value=0.3, max_value=50), st.floats(min_value=0.1, max_value=30))
def test_without_sampling_it_is_the_gaussian(noise: float, order: float) -> None:
    sample = quadrature(SampledGaussian(1.0, noise), "remove")
    reach = (order + 1) / noise  # the tilt moves the mean this many deviations out
    if reach < 5:
        expected = order * (order + 1) / (2 * noise**2)
        assert cumulant(sample, order) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("q", "noise", "steps"), [(0.01, 1.0, 1000), (0.2, 5.0, 300)])
def test_bound_is_close_to_the_rdp_accountant(q: float, noise: float, steps: int) -> None:
    event = dpsgd_event(sampling_probability=q, noise_multiplier=noise, steps=steps)
    theirs = RdpAccountant().compose(event).get_epsilon(1e-5)
    _, ours = renyi_epsilon([(quadrature(SampledGaussian(q, noise), "remove"), steps)], 1e-5)
    assert ours == pytest.approx(theirs, rel=0.02)  # they try fewer orders


@given(st.floats(min_value=0.5, max_value=5), st.floats(min_value=1e-4, max_value=0.1))
def test_grid_interval_spends_what_is_allowed(noise: float, allowed: float) -> None:
    samples = [(quadrature(SampledGaussian(0.1, noise), "remove"), 100)]
    order = 3.0
    interval = grid_interval(samples, order, allowed)
    assert interval >= math.sqrt(8 * allowed / (100 * (1 + order)))
    assert grid_interval(samples, order, allowed * 100) >= interval


def test_saddle_meets_the_mean_without_sampling() -> None:
    # Under the tilt the mean loss of a Gaussian step is (order + 1/2) / noise^2.
    samples = [(quadrature(SampledGaussian(1.0, 10.0), "remove"), 200)]
    assert saddle_order(samples, 7.0, 1e6) == pytest.approx(3.0, rel=0.05)
    assert saddle_order(samples, 7.0, 2.0) == pytest.approx(2.0)
    assert saddle_order(samples, 0.5, 1e6) < 1e-4
    assert composed_deviation(samples, 3.0) == pytest.approx(math.sqrt(200) / 10, rel=1e-3)


def exact_divergence(q: float, noise: float, alpha: float) -> float:
    """The integral by definition, in 40 digits: log E[(P/Q)^alpha] / (alpha - 1), drawn from Q."""
    with mpmath.workdps(40):
        q, s, a = mpmath.mpf(q), mpmath.mpf(noise), mpmath.mpf(alpha)

        def integrand(x: mpmath.mpf) -> mpmath.mpf:
            return (1 - q + q * mpmath.exp(x / s - 1 / (2 * s * s))) ** a * mpmath.npdf(x)

        edges = [-14, -4, 0, 4, a / s - 4, a / s, a / s + 4, a / s + 14]
        total = mpmath.quad(integrand, sorted(float(edge) for edge in edges), maxdegree=9)
        return float(mpmath.log(total) / (a - 1))


@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0, 3.33, 12.7, 75.0])
@pytest.mark.parametrize(
    ("q", "noise"), [(0.01, 0.5), (0.3, 1.3), (1e-5, 2.0), (0.9, 20.0), (0.5, 0.8), (1.0, 3.0)]
)
def test_divergence_is_the_integral_and_no_less(q: float, noise: float, alpha: float) -> None:
    exact = exact_divergence(q, noise, alpha)
    ours = divergence(SampledGaussian(q, noise), alpha)
    assert exact <= ours <= exact * (1 + 1e-8)


@given(
    st.floats(min_value=1e-4, max_value=1.0),
    st.floats(min_value=0.3, max_value=50),
    st.sampled_from([2, 3, 5, 8, 16, 32, 100, 1000]),
)
def test_divergence_is_that_of_dp_accounting(q: float, noise: float, alpha: int) -> None:
    # Whole orders: at fractional ones theirs adds up the absolute values of an alternating series.
    event = dpsgd_event(sampling_probability=q, noise_multiplier=noise, steps=1)
    theirs = float(RdpAccountant([alpha]).compose(event).rdp[0])
    ours = divergence(SampledGaussian(q, noise), alpha)
    assert ours >= theirs * (1 - 1e-9) - 1e-11
    if ours < 0.99 * alpha / (2 * noise**2) or q == 1:  # else it may be the one without sampling
        assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-11)


def test_divergence_without_bounds_is_that_of_the_step_without_sampling() -> None:
    assert divergence(SampledGaussian(0.1, 0.01), 9000.0) == pytest.approx(9000 / 2e-4)
    assert divergence(SampledGaussian(1e-12, 1e6), 1.1) > 0

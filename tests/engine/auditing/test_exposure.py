"""Exposure against brute force; estimates against what enumeration gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from taciturn.engine.auditing.exposure import (
    _upper_tail,
    estimated_exposure,
    exact_exposure,
)


@given(st.floats(-50, 0), st.lists(st.floats(-50, 0), min_size=1, max_size=30))
def test_exact_is_brute_force(secret: float, others: list[float]) -> None:
    found = exact_exposure(secret, np.array(others))
    ranked = sorted([*others, secret], reverse=True)
    rank = max(place for place, value in enumerate(ranked, start=1) if value == secret)
    assert found.rank == rank
    assert found.bits == pytest.approx(math.log2(len(ranked)) - math.log2(rank), abs=1e-12)
    assert found.interval == (found.bits, found.bits)
    assert 0 <= found.bits <= found.most


def test_first_and_last() -> None:
    others = np.linspace(-9, -1, 63)
    assert exact_exposure(-0.5, others).bits == 6
    assert exact_exposure(-10.0, others).bits == 0
    # A model that cannot tell them apart exposes nothing.
    assert exact_exposure(-1.0, np.full(63, -1.0)).bits == 0


@pytest.mark.statistical
def test_the_sampled_rank_is_near_the_true_one() -> None:
    rng = np.random.default_rng(5)
    space = rng.normal(-30, 5, 200_000)
    secret = np.quantile(space, 0.97)
    exact = exact_exposure(secret, space)
    covered = 0
    for _ in range(200):
        found = estimated_exposure(secret, rng.choice(space, 2000), len(space) + 1, 0.95)
        assert found.method == "sampled"
        assert found.bits == pytest.approx(exact.bits, abs=0.7)
        covered += found.interval[0] <= exact.bits <= found.interval[1]
    assert covered >= 184  # 95% of 200, less 2 standard deviations


@pytest.mark.statistical
@pytest.mark.parametrize("shape", [0.0, 3.0, -3.0])
def test_extrapolation_reaches_beyond_the_sample(shape: float) -> None:
    """In a space of 10^9 the sample alone ends at 8 bits; the fitted tail goes on."""
    law = stats.skewnorm(shape, loc=-30, scale=5)
    sample = law.rvs(1000, random_state=np.random.default_rng(6))
    secret = float(law.isf(1e-6))
    found = estimated_exposure(secret, sample, 10**9, 0.95)
    assert found.method == "extrapolated"
    assert found.bits == pytest.approx(math.log2(1e6), rel=0.25)
    assert found.interval[0] < 9.5
    assert found.interval[1] == pytest.approx(math.log2(1e9))
    assert found.interval[0] <= found.bits <= found.interval[1]


def test_what_does_not_fit_is_not_extrapolated() -> None:
    rng = np.random.default_rng(7)
    two_humps = np.concatenate([rng.normal(-60, 1, 500), rng.normal(-10, 1, 500)])
    found = estimated_exposure(-5.0, two_humps, 10**9, 0.95)
    assert found.method == "at least"
    assert found.bits == found.interval[0]
    assert found.bits == pytest.approx(math.log2(1 / 0.0037), abs=0.1)
    assert found.fit_p_value is not None
    assert found.fit_p_value < 0.05
    same = estimated_exposure(-5.0, np.full(200, -9.0), 10**6, 0.95)
    assert same.method == "at least"


def test_no_estimate_leaves_the_space() -> None:
    sample = np.random.default_rng(8).normal(-30, 5, 500)
    for secret in (-500.0, -30.0, 0.0, 500.0):
        found = estimated_exposure(secret, sample, 5000, 0.95)
        assert 0 <= found.bits <= found.most
        assert 1 <= found.rank <= 5000


def test_the_tail_does_not_cancel() -> None:
    for distance in (3, 6, 12, 25):
        expected = stats.norm.logsf(distance)
        found = math.log(_upper_tail(stats.skewnorm(0.0), float(distance)))
        assert found == pytest.approx(expected, rel=1e-6)

"""Estimates against counting pairs, intervals against simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from taciturn.engine.auditing.intervals import auc, auc_interval, clopper_pearson

Floats = NDArray[np.float64]
SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


def counted_auc(members: list[int], others: list[int]) -> float:
    pairs = list(itertools.product(members, others))
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


@given(SCORES, SCORES)
def test_auc_counts_pairs_and_halves_ties(members: list[int], others: list[int]) -> None:
    found = auc(np.array(members, dtype=float), np.array(others, dtype=float))
    assert found == pytest.approx(counted_auc(members, others), abs=1e-12)


@given(SCORES, SCORES)
def test_delong_against_the_literal_estimator(members: list[int], others: list[int]) -> None:
    """DeLong et al. 1988, equations 4 to 6: variances of the placements, counted one by one."""
    x, y = np.array(members, dtype=float), np.array(others, dtype=float)
    area = counted_auc(members, others)
    if min(area, 1 - area) * min(len(x), len(y)) < 3.001:
        return  # Clopper-Pearson's interval counts, too
    kernel = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    variance = kernel.mean(1).var(ddof=1) / len(x) + kernel.mean(0).var(ddof=1) / len(y)
    reach = stats.norm.ppf(0.975) * np.sqrt(variance) / (area * (1 - area))
    logit = np.log(area / (1 - area))
    expected = 1 / (1 + np.exp(-(logit + np.array([-reach, reach]))))
    assert auc_interval(x, y, 0.95) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (1, 1000), (500, 1000)])
def test_clopper_pearson_against_scipy(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(hits, n, 0.95) == pytest.approx(tuple(expected), abs=1e-9)


def test_no_trials_say_nothing() -> None:
    assert clopper_pearson(0, 0, 0.95) == (0.0, 1.0)


@pytest.mark.statistical
@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 0.97])
def test_clopper_pearson_covers(p: float) -> None:
    hits = np.random.default_rng(1).binomial(200, p, 2000)
    intervals = [clopper_pearson(int(each), 200, 0.95) for each in hits]
    assert np.mean([low <= p <= high for low, high in intervals]) >= 0.94


def normal(rng: np.random.Generator, area: float, m: int, n: int) -> tuple[Floats, Floats]:
    shift = np.sqrt(2) * stats.norm.ppf(area)
    return rng.normal(shift, 1, m), rng.normal(0, 1, n)


def spread(rng: np.random.Generator, area: float, m: int, n: int) -> tuple[Floats, Floats]:
    shift = np.sqrt(10) * stats.norm.ppf(area)
    return rng.normal(shift, 3, m), rng.normal(0, 1, n)


def few_memorised(rng: np.random.Generator, area: float, m: int, n: int) -> tuple[Floats, Floats]:
    far = np.where(rng.random(m) < 2 * area - 1, 10.0, 0.0)
    return far + rng.normal(0, 1, m), rng.normal(0, 1, n)


@pytest.mark.statistical
@pytest.mark.parametrize("law", [normal, spread, few_memorised])
@pytest.mark.parametrize(("m", "n"), [(20, 20), (50, 200), (200, 50)])
@pytest.mark.parametrize("area", [0.5, 0.7, 0.9, 0.99, 0.999])
def test_the_auc_interval_covers(law: object, m: int, n: int, area: float) -> None:
    rng = np.random.default_rng(2)
    repeats = 300
    covered = 0
    for _ in range(repeats):
        low, high = auc_interval(*law(rng, area, m, n), 0.95)  # type: ignore[operator]
        covered += low <= area <= high
    assert covered / repeats >= 0.91


def test_perfect_separation_is_not_certainty() -> None:
    low, high = auc_interval(np.ones(30), np.zeros(30), 0.95)
    assert high == 1
    assert low == pytest.approx(0.884, abs=1e-3)
    low, high = auc_interval(np.zeros(30), np.ones(30), 0.95)
    assert low == 0
    assert high == pytest.approx(0.116, abs=1e-3)


def test_more_confidence_is_wider() -> None:
    x, y = normal(np.random.default_rng(3), 0.7, 60, 60)
    narrow, wide = auc_interval(x, y, 0.8), auc_interval(x, y, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]

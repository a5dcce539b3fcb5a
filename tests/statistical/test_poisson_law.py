"""Draws follow the Poisson sampling that is accounted for, at rates from rare to everyone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mutants.harness import CHANCE, key
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.sampling import PoissonSampler

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("q", [1e-4, 0.01, 0.3, 0.5, 0.97])
def test_number_of_units_is_binomial(q: float) -> None:
    sampler, stream = PoissonSampler(q), SecureStream(key(1))
    sizes = np.array([len(sampler.draw(stream, 2000)) for _ in range(2000)])
    law = stats.binom(2000, q)
    total = stats.binom(2000 * 2000, q)
    assert CHANCE < total.cdf(sizes.sum()) < 1 - CHANCE
    # The spread of sizes, both sides: a shuffled epoch has none, a double draw has too much.
    statistic = ((sizes - law.mean()) ** 2).sum() / law.var()
    low, high = _spread_bounds(len(sizes), law)
    assert low < statistic < high


def _spread_bounds(n: int, law: object) -> tuple[float, float]:
    kurtosis = float(law.stats(moments="k"))  # type: ignore[attr-defined]
    deviation = math.sqrt(n * (2 + kurtosis))
    reach = float(stats.norm.isf(CHANCE / 2))
    return n - reach * deviation, n + reach * deviation


def test_every_unit_joins_as_often() -> None:
    sampler, stream = PoissonSampler(0.2), SecureStream(key(2))
    draws, counts = 3000, np.zeros(300)
    for _ in range(draws):
        counts[sampler.draw(stream, 300)] += 1
    statistic = ((counts - draws * 0.2) ** 2).sum() / (draws * 0.2 * 0.8)
    assert CHANCE < stats.chi2.sf(statistic, 300) < 1 - CHANCE


def test_gaps_between_draws_are_geometric() -> None:
    """A unit that was just drawn is neither more nor less likely to be drawn again."""
    sampler, stream = PoissonSampler(0.25), SecureStream(key(3))
    draws = [sampler.draw(stream, 200) for _ in range(1200)]
    last: dict[int, int] = {}
    gaps = []
    for step, drawn in enumerate(draws):
        for unit in drawn.tolist():
            if unit in last:
                gaps.append(step - last[unit])
            last[unit] = step
    seen = np.bincount(np.minimum(gaps, 15), minlength=16)[1:]
    expected = np.array([0.25 * 0.75 ** (k - 1) for k in range(1, 15)] + [0.75**14]) * len(gaps)
    # Gaps cut off at the end of the run are missing, a little more of the long ones.
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > CHANCE


def test_five_million_units_in_little_memory() -> None:
    sampler = PoissonSampler(1e-4)
    drawn = sampler.draw(SecureStream(key(4)), 5_000_000)
    assert abs(len(drawn) - 500) < 6 * math.sqrt(500)
    assert drawn[-1] > 4_000_000

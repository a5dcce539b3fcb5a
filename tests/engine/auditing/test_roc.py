"""Operating points against brute force over every threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.engine.auditing.roc import operating_point, roc
from taciturn.errors import DataError

SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=15)


@given(SCORES, SCORES, st.sampled_from([0.1, 0.25, 0.5]))
def test_the_best_threshold_of_all(members: list[int], others: list[int], fpr: float) -> None:
    """The largest TPR over every rule `score > t` whose FPR is at most the one asked for."""
    x, y = np.array(members, dtype=float), np.array(others, dtype=float)
    point = operating_point(x, y, fpr, 0.95)
    if point.tpr is None:
        assert len(y) * fpr < 1
        return
    rules = [t for t in np.arange(-5, 6) if (y > t).mean() <= fpr + 1e-9]
    assert point.tpr == max((x > t).mean() for t in rules)


def test_too_few_non_members_are_said_not_guessed() -> None:
    rng = np.random.default_rng(0)
    found = roc(rng.normal(1, 1, 500), rng.normal(0, 1, 999), 0.95, lambda fpr: 20 * fpr)
    rare, common = found.points
    assert (rare.fpr, rare.tpr, rare.tpr_interval, rare.fpr_interval) == (0.001, None, None, None)
    assert (rare.non_members_needed, common.non_members_needed) == (1000, 100)
    assert common.tpr is not None
    assert (rare.promised_tpr, common.promised_tpr) == (0.02, 0.2)
    enough = roc(rng.normal(1, 1, 500), rng.normal(0, 1, 1000), 0.95)
    assert enough.points[0].tpr is not None
    assert enough.points[0].promised_tpr is None


def test_ties_are_never_split() -> None:
    point = operating_point(np.ones(50), np.ones(200), 0.01, 0.95)
    assert point.tpr == 0
    few = operating_point(np.full(50, 2.0), np.ones(200), 0.01, 0.95)
    assert few.tpr == 1


@pytest.mark.statistical
def test_intervals_cover_the_rates_of_the_threshold_found() -> None:
    """The threshold is chosen on the non-members: the interval of its own FPR says so."""
    rng = np.random.default_rng(4)
    covered = np.zeros(2)
    repeats = 400
    for _ in range(repeats):
        x, y = rng.uniform(0.3, 1, 150), rng.uniform(0, 1, 300)
        point = operating_point(x, y, 0.05, 0.95)
        threshold = np.sort(y)[::-1][15]
        truth = (1 - threshold) / 0.7, 1 - threshold
        assert point.tpr_interval is not None
        assert point.fpr_interval is not None
        covered[0] += point.tpr_interval[0] <= truth[0] <= point.tpr_interval[1]
        covered[1] += point.fpr_interval[0] <= truth[1] <= point.fpr_interval[1]
    assert (covered / repeats >= 0.93).all()


@pytest.mark.parametrize(("members", "others"), [(9, 100), (100, 9)])
def test_too_few_units_for_anything(members: int, others: int) -> None:
    with pytest.raises(DataError, match="at least 10 members and 10 non-members"):
        roc(np.zeros(members), np.zeros(others), 0.95)

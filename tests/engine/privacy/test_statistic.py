"""Released figures: bounded per unit, noised, divided by a public number."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st

from taciturn.accounting.compose import epsilon
from taciturn.engine.privacy.clipping import STATISTICS, clip_and_sum_statistics
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.statistic import GaussianStatistic
from taciturn.errors import GuaranteeError

KEY = bytes(range(32))
FIGURES = st.floats(allow_nan=True, allow_infinity=True, width=64)


def rows(n_units: int, figures: int = 3) -> st.SearchStrategy[list[list[float]]]:
    row = st.lists(FIGURES, min_size=figures, max_size=figures)
    return st.lists(row, min_size=n_units, max_size=n_units)


@given(rows(5), st.integers(0, 4), st.floats(1e-3, 1e3))
def test_one_unit_moves_the_sum_by_the_clip_norm_at_most(
    values: list[list[float]], left_out: int, clip: float
) -> None:
    """Any figures at all, NaN and infinity included."""
    everyone = torch.tensor(values, dtype=torch.float64)
    neighbour = torch.cat([everyone[:left_out], everyone[left_out + 1 :]])
    total = clip_and_sum_statistics(everyone, clip)
    change = total.values[STATISTICS] - clip_and_sum_statistics(neighbour, clip).values[STATISTICS]
    assert float(change.norm()) <= clip * (1 + 1e-6)
    assert total.l2_sensitivity == clip


@given(rows(4), st.integers(0, 3))
def test_neighbours_differ_by_the_left_out_unit_only(
    values: list[list[float]], left_out: int
) -> None:
    """The same noise on both: what is released differs by one unit's share of the public count."""
    everyone = torch.tensor(values, dtype=torch.float64)
    neighbour = torch.cat([everyone[:left_out], everyone[left_out + 1 :]])
    mechanism = GaussianStatistic(n_units=4, l2_clip_norm=2.0, noise_multiplier=1.0)
    with_unit = mechanism.release(everyone, SecureStream(KEY))
    without = mechanism.release(neighbour, SecureStream(KEY))
    change = np.linalg.norm(np.subtract(with_unit.mean_K, without.mean_K))
    assert change <= 2.0 / 4 * (1 + 1e-4)
    assert with_unit.noise_std == without.noise_std == 2.0 / 4


def test_bounded_rows_are_summed_as_they_are() -> None:
    values_UK = torch.tensor([[0.5, -0.5], [0.25, 0.0], [math.nan, 0.0]])
    total = clip_and_sum_statistics(values_UK, 1.0)
    torch.testing.assert_close(
        total.values[STATISTICS], torch.tensor([0.75, -0.5], dtype=torch.float64)
    )
    assert (total.counts.n_units, total.counts.n_clipped, total.counts.n_non_finite) == (3, 0, 1)


def test_no_unit_at_all_is_pure_noise() -> None:
    mechanism = GaussianStatistic(n_units=10, l2_clip_norm=1.0, noise_multiplier=2.0)
    released = mechanism.release(torch.zeros(0, 4), SecureStream(KEY))
    assert len(set(released.mean_K)) == 4


@pytest.mark.statistical
def test_noise_has_the_stated_scale() -> None:
    """Chi-square over 40,000 figures: 2% off in the standard deviation is seen on either side."""
    mechanism = GaussianStatistic(n_units=5, l2_clip_norm=3.0, noise_multiplier=1.7)
    released = mechanism.release(torch.zeros(5, 40_000), SecureStream(KEY))
    assert released.noise_std == pytest.approx(1.7 * 3.0 / 5)
    ratio = float(np.mean(np.square(released.mean_K))) / released.noise_std**2
    assert abs(ratio - 1) < 5 * math.sqrt(2 / 40_000)


def test_the_event_is_that_of_the_noise() -> None:
    mechanism = GaussianStatistic(n_units=5, l2_clip_norm=3.0, noise_multiplier=1.7)
    assert mechanism.dp_event == dp_accounting.GaussianDpEvent(1.7)
    theirs = PLDAccountant().compose(mechanism.dp_event).get_epsilon(1e-5)
    assert epsilon(mechanism.dp_event, 1e-5) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(
    ("n_units", "clip", "noise"),
    [(0, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, 0.0), (1, math.nan, 1.0), (1, 1.0, math.inf)],
)
def test_parameters_without_a_guarantee(n_units: int, clip: float, noise: float) -> None:
    with pytest.raises(GuaranteeError, match="positive and finite"):
        GaussianStatistic(n_units=n_units, l2_clip_norm=clip, noise_multiplier=noise)

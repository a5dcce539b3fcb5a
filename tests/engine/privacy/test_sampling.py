"""Poisson sampling over units: the bounds of its arguments and the shape of its draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.sampling import PoissonSampler


@given(n_units=st.integers(0, 300), probability=st.floats(0, 1, exclude_min=True))
def test_draw_is_a_set_of_units(n_units: int, probability: float) -> None:
    units = PoissonSampler(probability).draw(SecureStream(bytes(32)), n_units)
    assert units.dtype == np.int64
    assert (np.diff(units) > 0).all(), "ascending, so no unit twice"
    assert not len(units) or (units[0] >= 0 and units[-1] < n_units)


def test_probability_one_takes_everyone() -> None:
    assert len(PoissonSampler(1.0).draw(SecureStream.fresh(), 50)) == 50


def test_draw_may_be_empty() -> None:
    """An empty draw is a step like any other: neither skipped nor filled with a made-up record."""
    stream = SecureStream(bytes(32))
    sizes = [len(PoissonSampler(0.05).draw(stream, 10)) for _ in range(200)]
    assert 0 in sizes


@pytest.mark.parametrize("probability", [0.0, -0.5, 1.01, float("nan")])
def test_probability_outside_its_bound(probability: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        PoissonSampler(probability)

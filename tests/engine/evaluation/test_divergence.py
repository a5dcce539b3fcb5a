"""MAUVE is 1 for equal distributions, near 0 for disjoint ones, and falls in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.engine.evaluation.divergence import assign, codebook, mauve, shares

DISTRIBUTIONS = st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any)


@given(DISTRIBUTIONS, DISTRIBUTIONS)
def test_bounds_and_symmetry(first: list[int], second: list[int]) -> None:
    p, q = (np.array(counts) / sum(counts) for counts in (first, second))
    assert 0 <= mauve(p, q) <= 1
    assert mauve(p, q) == pytest.approx(mauve(q, p), abs=0.02)
    assert mauve(p, p) == pytest.approx(1, abs=1e-6)


def test_it_falls_with_distance() -> None:
    p = [0.5, 0.5, 0.0]
    scores = [mauve(p, q) for q in ([0.5, 0.5, 0.0], [0.4, 0.5, 0.1], [0.1, 0.3, 0.6], [0, 0, 1])]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.02


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    points = np.vstack([rng.normal(centre, 0.1, (50, 2)) for centre in (0, 5, 10)])
    centres = codebook(points, 3)
    groups = assign(points, centres).reshape(3, 50)
    assert all(len(set(group)) == 1 for group in groups)
    assert len(set(groups[:, 0])) == 3
    assert list(shares(groups.ravel(), 3)) == pytest.approx([1 / 3] * 3)


def test_more_clusters_than_texts() -> None:
    assert len(codebook(np.zeros((4, 2)), 3)) == 1
    assert len(codebook(np.eye(2), 9)) == 2
    assert list(shares(np.array([], dtype=np.int64), 2)) == [0, 0]

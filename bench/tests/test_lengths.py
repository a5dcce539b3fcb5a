"""Generated lengths follow PHEE's published quantiles."""

from __future__ import annotations

import numpy as np
import pytest

from steps.lengths import MEAN_TOKENS, PERCENTS, TOKENS, phee_lengths


@pytest.mark.parametrize("count", [64, 256, 2898])
def test_quantiles_and_mean_are_those_of_the_source(count: int) -> None:
    lengths = phee_lengths(count, seed=0)
    inner = [(q, t) for q, t in zip(PERCENTS, TOKENS, strict=True) if 5 <= q <= 95]
    for percent, tokens in inner:
        assert np.percentile(lengths, percent) == pytest.approx(tokens, abs=2)
    assert np.mean(lengths) == pytest.approx(MEAN_TOKENS, abs=1)
    assert min(TOKENS) <= min(lengths) <= max(lengths) <= max(TOKENS)


def test_a_seed_changes_the_order_only() -> None:
    first, second = phee_lengths(100, seed=1), phee_lengths(100, seed=2)
    assert first != second
    assert sorted(first) == sorted(second)

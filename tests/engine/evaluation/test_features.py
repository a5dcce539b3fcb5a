"""Features depend on the words of a text and on nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from taciturn.engine.evaluation.features import ngram_features, with_surprise, words


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_rows_have_norm_one_or_are_zero(texts: list[str]) -> None:
    features = ngram_features(texts, 64)
    norms = np.linalg.norm(features, axis=1)
    for text, norm in zip(texts, norms, strict=True):
        # Signed hashing can cancel, but never exceeds one.
        assert norm <= 1 + 1e-9
        assert norm == 0 or abs(norm - 1) < 1e-9
        assert words(text) or norm == 0
    np.testing.assert_array_equal(features, ngram_features(texts, 64))


def test_likeness_follows_words() -> None:
    near, same, far = ngram_features(
        ["the cough is bad", "The cough is bad.", "blood pressure fell"]
    )
    assert near @ same > 0.99
    assert abs(near @ far) < 0.5


def test_surprise_is_one_more_dimension() -> None:
    features = with_surprise(ngram_features(["a", "b"], 8), np.array([3.0, 6.0]))
    assert features.shape == (2, 9)
    assert list(features[:, -1]) == [0.5, 1.0]

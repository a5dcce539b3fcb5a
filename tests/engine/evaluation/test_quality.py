"""Samples that are like the reference score higher; a private reference shapes no cluster."""

from __future__ import annotations

import numpy as np

from taciturn.engine.evaluation.quality import ScoredTexts, TextStatistics, compare

COUGH = [f"the patient has a cough and fever {i % 5}" for i in range(60)]
LAW = [f"the court dismissed appeal number {i % 5} of the plaintiff" for i in range(60)]


def texts(content: list[str], nats: float = 3.0) -> ScoredTexts:
    return ScoredTexts(content, np.full(len(content), nats))


def test_like_beats_unlike() -> None:
    comparison = compare(texts(COUGH), texts(LAW), texts(COUGH), private=False, embedder=None)
    counted = tuple(TextStatistics.of(each) for each in (COUGH, LAW, COUGH))
    quality = comparison.quality(comparison.reference_K, counted)
    assert quality.mauve > 0.9
    assert quality.mauve_base < 0.1
    assert quality.reference == counted[2]


def test_a_private_reference_does_not_shape_the_clusters() -> None:
    made = [
        compare(texts(COUGH), texts(LAW), texts(reference), private=True, embedder=None)
        for reference in (COUGH, LAW, ["secret"])
    ]
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].centres_KD, other.centres_KD)
    assert len(made[2].reference_U) == 1
    counted = (TextStatistics.of(COUGH), TextStatistics.of(LAW))
    assert made[0].quality([1.0] + [0.0] * (len(made[0].centres_KD) - 1), counted).reference is None


def test_an_embedder_takes_the_place_of_n_grams() -> None:
    def lengths(content: object) -> np.ndarray:
        return np.array([[float(len(text))] for text in content])  # type: ignore[attr-defined]

    comparison = compare(texts(COUGH), texts(LAW), texts(LAW), private=False, embedder=lengths)
    assert comparison.centres_KD.shape[1] == 1


def test_statistics() -> None:
    found = TextStatistics.of(["a b a", "", "b"])
    assert (found.n_texts, found.mean_words) == (3, 4 / 3)
    assert found.empty == 1 / 3
    assert found.distinct == (0.5, 1.0, 1.0)
    assert TextStatistics.of([]).distinct == (0, 0, 0)

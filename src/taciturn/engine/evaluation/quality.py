"""Quality of what a model writes, beside what it should write like.

The codebook of the comparison is made from samples and public text only; of a private reference,
each unit adds a one to a single cluster, and those counts are released with noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taciturn.data.rows import attempted
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.engine.evaluation.divergence import assign, codebook, mauve, shares
from taciturn.engine.evaluation.features import (
    Embedder,
    Floats,
    ngram_features,
    with_surprise,
    words,
)
from taciturn.engine.evaluation.likelihood import UnitScores

MOST_CLUSTERS, MOST_PRIVATE_CLUSTERS = 50, 16


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Length and variety of a set of texts.

    Attributes:
        n_texts: how many.
        empty: share of texts without a word.
        mean_words: words per text.
        distinct: share of different uni-, bi- and trigrams among all (Li et al. 2016, section 5).
    """

    n_texts: int
    empty: float
    mean_words: float
    distinct: tuple[float, float, float]

    @classmethod
    def of(cls, texts: Sequence[str]) -> TextStatistics:
        """Count; all zero of no texts."""
        token_lists = [words(text) for text in texts]
        lengths = [len(tokens) for tokens in token_lists]
        count = max(1, len(texts))
        return cls(
            len(texts),
            sum(length == 0 for length in lengths) / count,
            sum(lengths) / count,
            (_distinct(token_lists, 1), _distinct(token_lists, 2), _distinct(token_lists, 3)),
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """Samples against a reference.

    Attributes:
        mauve: of the model's samples and the reference, in (0, 1]; higher is nearer.
        mauve_base: of the base model's samples and the reference.
        n_clusters: of the comparison.
        samples: statistics of the model's samples.
        base_samples: statistics of the base model's samples.
        reference: statistics of the reference; None if it is private, where they are not paid for.
    """

    mauve: float
    mauve_base: float
    n_clusters: int
    samples: TextStatistics
    base_samples: TextStatistics
    reference: TextStatistics | None


@dataclass(frozen=True, slots=True, repr=False)
class ScoredTexts:
    """Texts and how the base model takes them: nats per token [N]."""

    texts: list[str]
    nats_N: Floats

    @classmethod
    def of(cls, texts: list[str], scores: UnitScores) -> ScoredTexts:
        """Texts with the base model's scores of them; a text without tokens has zero nats."""
        nats_N = (scores.nats_U / scores.tokens_U.clamp(min=1)).numpy()
        return cls(texts, nats_N)

    def features(self, embedder: Embedder | None) -> Floats:
        """Vectors [N, D]: the embedder's, or n-grams and surprise."""
        if embedder is not None:
            return np.asarray(embedder(self.texts), dtype=np.float64)
        return with_surprise(ngram_features(self.texts), self.nats_N)


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Clusters made from public vectors, and where samples and reference fall."""

    centres_KD: Floats
    samples_K: Floats
    base_K: Floats
    reference_U: NDArray[np.int64]

    def quality(
        self, reference_K: Sequence[float] | Floats, texts: tuple[TextStatistics, ...]
    ) -> Quality:
        """The result, given the reference's shares (exact, or released); texts as in Quality."""
        samples, base, *reference = texts
        return Quality(
            mauve(reference_K, self.samples_K),
            mauve(reference_K, self.base_K),
            len(self.centres_KD),
            samples,
            base,
            reference[0] if reference else None,
        )

    @property
    def reference_K(self) -> Floats:
        """Exact shares of the reference; private if it is."""
        return shares(self.reference_U, len(self.centres_KD))


def compare(
    samples: ScoredTexts,
    base: ScoredTexts,
    reference: ScoredTexts,
    *,
    private: bool,
    embedder: Embedder | None,
) -> Comparison:
    """Cluster samples (with the reference, if it is public) and assign all texts."""
    vectors = [texts.features(embedder) for texts in (samples, base, reference)]
    public = np.vstack(vectors[:2] if private else vectors)
    most = MOST_PRIVATE_CLUSTERS if private else MOST_CLUSTERS
    centres_KD = codebook(public, max(2, min(most, len(public) // 10)))
    samples_N, base_N, reference_U = (assign(features_ND, centres_KD) for features_ND in vectors)
    count = len(centres_KD)
    return Comparison(centres_KD, shares(samples_N, count), shares(base_N, count), reference_U)


def unit_texts(dataset: TokenizedDataset, tokenizer: Any) -> list[str]:
    """Each unit's records as one text, as far as they were kept. Private if the data are.

    A unit whose tokens cannot be written is an empty text: no evaluation fails because of one.
    """

    def text(unit: int) -> str:
        return "\n".join(
            tokenizer.decode(record.input_ids.tolist(), skip_special_tokens=True)
            for record in dataset.records(unit)
        )

    return [attempted(partial(text, unit)) or "" for unit in range(dataset.n_units)]


def _distinct(texts: list[list[str]], n: int) -> float:
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / max(1, len(grams))

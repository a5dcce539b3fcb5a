"""A text as a vector without any embedder: hashed n-grams, and how the base model takes it.

Small, embedded and the same everywhere; coarse, too. Where a sentence embedder is at hand, its
vectors can stand in for these.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Embedder = Callable[[Sequence[str]], Floats]
"""Texts to vectors [N, D]; may be anything that is fixed and public."""

_WORD = re.compile(r"\w+")
# How much of a text's place its surprise decides: 6 nats per token weigh as all n-grams together.
_NATS_SCALE = 6.0


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def ngram_features(texts: Sequence[str], dimensions: int = 256) -> Floats:
    """Hashed word uni- and bigrams, damped and of norm 1; [N, D]. A text without words is zero.

    Signed hashing (Weinberger et al. 2009, section 2) with CRC-32, so that every process agrees.
    """
    features_ND = np.zeros((len(texts), dimensions))
    for row, text in zip(features_ND, texts, strict=True):
        for gram, count in _grams(text).items():
            code = zlib.crc32(gram.encode("utf-8"))
            row[code % dimensions] += (1 + np.log(count)) * (1 if code >> 31 else -1)
    norms_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    return features_ND / np.where(norms_N1 > 0, norms_N1, 1.0)


def with_surprise(features_ND: Floats, nats_N: Floats) -> Floats:
    """Append one dimension: nats per token under the base model."""
    return np.hstack([features_ND, nats_N[:, None] / _NATS_SCALE])


def _grams(text: str) -> Counter[str]:
    tokens = words(text)
    pairs = (" ".join(pair) for pair in itertools.pairwise(tokens))
    return Counter([*tokens, *pairs])
